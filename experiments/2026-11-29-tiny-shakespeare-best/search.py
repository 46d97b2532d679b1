"""The search for configs/tiny_shakespeare_best.py: a 2 x LSTM 512 with different batches, regularisers and epochs.

    scripts/sweep.py --config=experiments/2026-11-29-tiny-shakespeare-best/search.py --root=runs/search --parallel=2

All trials have the Adam settings of configs/quickstart.py. The validation split chooses.
"""

from charlm.sweeps.sweep import chain
from configs import tiny_shakespeare

SHORT = {"batch.length": 32}
LARGE = {"batch.size": 64, "train.epochs": 8.0, "optim.average": "ema", "optim.average_decay": 0.995}
SMALL = {"batch.length": 32, "train.epochs": 8.0, "optim.average": "ema", "optim.average_decay": 0.999}
LOCKED = {"model.dropout": 0.25, "model.dropout_kind": "variational", "model.weight_drop": 0.2}
NORM = {"model.residual": True, "model.norm": True, "model.embedding": 512}
HIGH = {"optim.learning_rate": 8e-3}


def get_config():
    config = tiny_shakespeare.get_config()
    config.optim.beta2 = 0.99
    config.optim.warmup_steps = 100
    return config


def sweep():
    decays = [{"optim.name": "adamw", "optim.weight_decay": decay} for decay in (0.05, 0.2)]
    return chain(
        [SHORT | trial for trial in ({}, HIGH, NORM, {"model.ar": 5.0}, *decays)],
        [{"batch.size": 16}],
        [LARGE | {"model.dropout": 0.25}, LARGE | LOCKED],
        [SMALL | LOCKED],
    )
