"""Tiny Shakespeare: the general recipe with 1024 units and 4 epochs.

    scripts/train.py --config=configs/tiny_shakespeare_best.py --workdir=runs/tiny_shakespeare_best
    scripts/evaluate.py --workdir=runs/tiny_shakespeare_best
    scripts/evaluate.py --workdir=runs/tiny_shakespeare_best --framing=chunks --length=256
    scripts/evaluate.py --workdir=runs/tiny_shakespeare_best --dynamic --dynamic_grid

The first 90 % of the text are for training, the last 10 % for validation.
"""

from configs import strong


def get_config():
    config = strong.get_config()
    config.model.hidden = 1024
    config.train.epochs = 4.0
    return config
