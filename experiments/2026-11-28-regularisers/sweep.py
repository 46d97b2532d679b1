"""Regularisers alone and in pairs: 2 x LSTM 512 on tiny Shakespeare.

    scripts/sweep.py --config=experiments/2026-11-28-regularisers/sweep.py --root=runs/regularisers --parallel=2

The recipe is configs/tiny_shakespeare.py without its penalty AR. This penalty came into the recipe because of this sweep. A
trial makes 1,470 steps. Each regulariser is tried with one strength, which is near the strength that was published for models
of characters. The best setting is repeated with two more seeds.
"""

import itertools

from charlm.sweeps.sweep import chain, repeat
from configs import tiny_shakespeare

REGULARISERS = {
    "dropout": {"model.dropout_hidden": 0.4, "model.dropout_output": 0.4},
    "variational": {"model.dropout_kind": "variational", "model.dropout_hidden": 0.4, "model.dropout_output": 0.4},
    "weight_drop": {"model.weight_drop": 0.3},
    "recurrent_dropout": {"model.recurrent_dropout": 0.25},
    "zoneout": {"model.zoneout_cell": 0.2, "model.zoneout_hidden": 0.05},
    "embedding_dropout": {"model.embedding_dropout": 0.05},
    "ar_tar": {"model.ar": 2.0, "model.tar": 1.0},
}
# The two parts of `ar_tar`, and dropout of the inputs. They are only tried alone.
ALONE = {
    "ar": {"model.ar": 2.0},
    "tar": {"model.tar": 1.0},
    "input_dropout": {"model.dropout_input": 0.1},
}
# `dropout` and `variational` are two kinds of the same dropout, so they make no pair.
PAIRS = [pair for pair in itertools.combinations(REGULARISERS, 2) if set(pair) != {"dropout", "variational"}]
# Trials with these keys are slower, so they run last.
SLOW = {"model.recurrent_dropout", "model.zoneout_cell"}
# The settings with the lowest validation loss. Filled in after the trials with seed 0.
BEST = [REGULARISERS["ar_tar"]]


def get_config():
    config = tiny_shakespeare.get_config()
    config.model.ar = 0.0
    return config


def sweep():
    alone = [{}, *REGULARISERS.values(), *ALONE.values()]
    pairs = [REGULARISERS[first] | REGULARISERS[second] for first, second in PAIRS]
    by_time = sorted(chain(alone, pairs), key=lambda trial: len(SLOW & set(trial)))
    return chain(by_time, repeat(BEST, seeds=[1, 2]))
