"""16 small trials: 2 widths, 4 learning rates and 2 seeds, on tiny Shakespeare.

    scripts/sweep.py --config=experiments/2026-11-29-sweeps/sweep.py --root=runs/small --parallel=2

`measure.py` runs this sweep with different launchers.
"""

from charlm.sweeps.sweep import product, repeat
from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.train.steps = 400
    return config


def sweep():
    return repeat(product({"model.hidden": [64, 128], "optim.learning_rate": [2.5e-3, 5e-3, 1e-2, 2e-2]}), seeds=2)
