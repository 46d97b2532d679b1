"""To perplexity 5.1378 (1.6366 nats, MXNet.jl's char-lstm after 21 epochs) on tiny Shakespeare 90/10 as soon as possible.

scripts/train.py --config=configs/speedrun.py --workdir=runs/speedrun

The record and its history stand in experiments/2026-11-22-speed.
"""

from configs import base


def get_config(arg: str | None = None):
    config = base.get_config(arg)
    config.batch.size = 32
    config.batch.length = 32
    config.model.layers = 1
    config.model.hidden = 256
    config.model.dtype = "bfloat16"
    config.optim.learning_rate = 1.2e-2
    config.optim.warmup_steps = 30
    config.train.epochs = 0.9
    config.train.eval_every = 1_000_000  # only at the end
    config.train.checkpoint_every = 0
    config.eval.lanes = 16  # the exact figure is that of scripts/evaluate.py
    config.sample.length = 0
    return config
