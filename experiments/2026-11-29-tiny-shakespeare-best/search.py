"""The search for configs/tiny_shakespeare_best.py: regularisers, width and layers within eight epochs of tiny Shakespeare.

    scripts/sweep.py --config=experiments/2026-11-29-tiny-shakespeare-best/search.py --root=runs/search --parallel=2

A trial has the Adam settings of configs/quickstart.py, an exponential mean of the weights and 64 rows of 64 characters.
"""

from charlm.sweeps.sweep import chain, product
from configs import tiny_shakespeare

STEP = {"model.dropout": 0.25}
LOCKED = {"model.dropout": 0.25, "model.dropout_kind": "variational", "model.weight_drop": 0.2}


def get_config():
    config = tiny_shakespeare.get_config()
    config.batch.size = 64
    config.optim.beta2 = 0.99
    config.optim.warmup_steps = 100
    config.optim.average = "ema"
    config.optim.average_decay = 0.995
    config.train.epochs = 8.0
    return config


def sweep():
    return chain(
        [STEP, LOCKED],
        product({"model.dropout": [0.1, 0.4]}),
        [{"model.dropout": 0.1, "model.weight_drop": 0.2}],
        [STEP | {"model.ar": 1.0}, STEP | {"model.ar": 4.0}],
        [STEP | {"model.cell": "layernorm_lstm"}, STEP | {"model.residual": True, "model.norm": True, "model.embedding": 512}],
        [STEP | {"model.layers": 3}, STEP | {"model.layers": 1, "model.hidden": 1024}],
    )
