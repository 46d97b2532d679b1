"""The search for configs/tiny_shakespeare_best.py: regularisers, width and layers within eight epochs of tiny Shakespeare.

    scripts/sweep.py --config=experiments/2026-11-29-tiny-shakespeare-best/search.py --root=runs/search --parallel=2

A trial has the windows and the Adam settings of configs/quickstart.py, and an exponential mean of the weights.
"""

from charlm.sweeps.sweep import chain
from configs import tiny_shakespeare

STEP = {"model.dropout": 0.25}
LOCKED = {"model.dropout": 0.25, "model.dropout_kind": "variational", "model.weight_drop": 0.2}
NORM = {"model.residual": True, "model.norm": True, "model.embedding": 512}
HEAVY = {"model.dropout": 0.4, "model.dropout_kind": "variational", "model.weight_drop": 0.4}


def get_config():
    config = tiny_shakespeare.get_config()
    config.batch.length = 32
    config.optim.beta2 = 0.99
    config.optim.warmup_steps = 100
    config.optim.average = "ema"
    config.optim.average_decay = 0.999
    config.train.epochs = 8.0
    return config


def sweep():
    return chain(
        [LOCKED, HEAVY, STEP],
        [LOCKED | {"model.ar": 1.0}, LOCKED | {"optim.learning_rate": 2e-3}],
        [LOCKED | {"model.cell": "layernorm_lstm"}, LOCKED | NORM],
        [LOCKED | {"model.layers": 3}, LOCKED | {"model.hidden": 768}],
    )
