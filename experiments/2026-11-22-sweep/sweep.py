"""A sweep on tiny Shakespeare: which of width, dropout and learning rate matters most within two epochs?

    scripts/sweep.py --config=experiments/2026-11-22-sweep/sweep.py --root=runs/shakespeare_sweep --parallel=2

Each trial changes some keys of the quickstart and trains for two epochs of 1,003,854 characters. The best of the 18
configurations is repeated with two more seeds.
"""

from charlm.sweeps.sweep import chain, product, repeat
from configs import base

BEST = {"model.hidden": [384], "model.dropout": [0.0], "optim.learning_rate": [1e-2]}  # filled in after the 18 trials


def get_config():
    # the recipe quickstart as it was then
    config = base.get_config()
    config.model.layers = 1
    config.optim.learning_rate = 5e-3
    config.train.epochs = 2.0
    config.sample.length = 100
    return config


def sweep():
    every = product({"model.hidden": [128, 256, 384], "model.dropout": [0.0, 0.2], "optim.learning_rate": [2e-3, 5e-3, 1e-2]})
    return chain(every, repeat(product(BEST), seeds=[1, 2]))
