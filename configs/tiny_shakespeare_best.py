"""Tiny Shakespeare: the general recipe with 1024 units, 4 epochs and no state noise.

    scripts/train.py --config=configs/tiny_shakespeare_best.py --workdir=runs/tiny_shakespeare_best
    scripts/evaluate.py --workdir=runs/tiny_shakespeare_best
    scripts/evaluate.py --workdir=runs/tiny_shakespeare_best --framing=chunks --length=256
    scripts/evaluate.py --workdir=runs/tiny_shakespeare_best --dynamic --dynamic_learning_rate=0.0004 --dynamic_lambda=0.008

The first 90 % of the text are for training, the last 10 % for validation.

Time: 28 min on one core of an Intel Xeon with AMX, with --config.devices=1.
Result: 1.3374 ± 0.0022 nats/char over seeds 0 to 2; 1.3684 ± 0.0020 in chunks of 256 characters;
1.2018 ± 0.0002 with dynamic evaluation.
experiments/2026-11-29-tiny-shakespeare-best has the measurements.
"""

from configs import strong


def get_config():
    config = strong.get_config()
    config.model.hidden = 1024
    config.model.state_noise = 0.0  # not needed: experiments/2026-11-29-general-recipe tries to make these models fail
    config.train.epochs = 4.0
    return config
