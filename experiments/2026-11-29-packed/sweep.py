"""16 trials that can be one pack: 4 learning rates, 2 dropout rates and 2 seeds, on tiny Shakespeare.

    scripts/sweep.py --config=experiments/2026-11-29-packed/sweep.py:64 --root=runs/packed_64 --launcher=packed --pack=16
    scripts/sweep.py --config=experiments/2026-11-29-packed/sweep.py:64 --root=runs/local_64 --parallel=2

The argument of the config is the number of hidden units. `measure.py` runs this sweep with both launchers.
"""

from charlm.sweeps.sweep import product, repeat
from configs import base


def get_config(hidden: str = "64"):
    # the recipe quickstart as it was then
    config = base.get_config()
    config.model.layers = 1
    config.optim.learning_rate = 5e-3
    config.train.epochs = 2.0
    config.model.hidden = int(hidden)
    config.train.steps = 200
    config.train.log_every = 50
    config.train.eval_every = 100
    config.train.checkpoint_every = 0
    config.eval.lanes = 64
    config.sample.length = 100
    return config


def sweep():
    return repeat(product({"model.dropout": [0.1, 0.2], "optim.learning_rate": [2.5e-3, 5e-3, 1e-2, 2e-2]}), seeds=2)
