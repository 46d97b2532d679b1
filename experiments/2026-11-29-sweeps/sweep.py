"""16 small trials: 2 widths, 4 learning rates and 2 seeds, on tiny Shakespeare.

    scripts/sweep.py --config=experiments/2026-11-29-sweeps/sweep.py --root=runs/small --parallel=2

`measure.py` runs this sweep with different launchers.
"""

from charlm.sweeps.sweep import product, repeat
from configs import base


def get_config():
    # the recipe quickstart as it was then
    config = base.get_config()
    config.model.layers = 1
    config.optim.learning_rate = 5e-3
    config.train.epochs = 2.0
    config.train.steps = 400
    return config


def sweep():
    return repeat(product({"model.hidden": [64, 128], "optim.learning_rate": [2.5e-3, 5e-3, 1e-2, 2e-2]}), seeds=2)
