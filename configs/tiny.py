"""A very small model that trains in seconds. Use this config in tests, and to check that charlm works on your machine.

    scripts/train.py --config=configs/tiny.py --workdir=runs/tiny
    scripts/sweep.py --config=configs/tiny.py --root=runs/tiny_sweep --parallel=2
    scripts/sweep.py --config=configs/tiny.py --root=runs/tiny_search --parallel=2 --search=tpe --trials=20

Time: about 10 s on 2 CPU cores.
Result: validation perplexity about 17.
"""

from charlm.sweeps.sweep import integers, log_uniform, product, uniform
from configs import base


def get_config():
    config = base.get_config()
    config.batch.size = 16
    config.batch.length = 32
    config.model.embedding = 16
    config.model.layers = 1
    config.model.hidden = 32
    config.optim.learning_rate = 1e-2
    config.train.steps = 60
    config.train.log_every = 20
    config.train.eval_every = 30
    config.sample.length = 100
    return config


def sweep():
    return product({"model.hidden": [32, 64], "optim.learning_rate": [1e-2, 3e-2]})


def space():
    return {
        "model.hidden": integers(16, 128, log=True),
        "optim.learning_rate": log_uniform(1e-3, 1e-1),
        "model.dropout": uniform(0.0, 0.5),
    }
