"""Shakespeare's sonnets: does a model that begins with the parameters of a model of his plays learn them better?

    scripts/train.py --config=quickstart --workdir=runs/plays/seed=0
    scripts/sweep.py --config=experiments/2026-11-28-fine-tuning/sweep.py --root=runs/sonnets --parallel=2

Each trial trains for 30 epochs on the first 80% of the sonnets, so all trials read the same number of characters. The best
setting with and without `train.init_from` is repeated with two more seeds.
"""

from charlm.sweeps.sweep import chain, product, repeat
from configs import base

PLAYS = "runs/plays/seed=0"
# The setting with the lowest validation loss, with and without a parent. Filled in after the trials with seed 0.
BEST = [
    {"train.init_from": PLAYS, "model.dropout": 0.0, "optim.learning_rate": 5e-4},
    {"train.init_from": None, "model.dropout": 0.5, "optim.learning_rate": 1e-2},
]


def get_config():
    # the recipe quickstart as it was then
    config = base.get_config()
    config.model.layers = 1
    config.optim.learning_rate = 5e-3
    config.corpus.name = "sonnets"
    config.corpus.split = (0.8, 0.1, 0.1)
    config.train.epochs = 30.0
    config.sample.length = 200
    return config


def sweep():
    rates = [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2]
    every = product({"train.init_from": [None, PLAYS], "model.dropout": [0.0, 0.3, 0.5], "optim.learning_rate": rates})
    return chain(every, repeat(BEST, seeds=[1, 2]))
