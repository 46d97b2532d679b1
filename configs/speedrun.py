"""Reaches a validation perplexity of 5.1378 (1.6366 nats/char) on tiny Shakespeare, split 90/10, as fast as possible.

    scripts/train.py --config=configs/speedrun.py --workdir=runs/speedrun

Time: 9 to 14 s on 2 CPU cores with native bfloat16.
Result: validation 1.6023 to 1.6255 nats/char with seeds 0 to 3.

MXNet.jl's char-lstm reaches this perplexity after 21 epochs. The attempts are listed in experiments/2026-11-22-speed and
experiments/2026-11-29-fast-recipes.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.batch.size = 32
    config.batch.length = 16
    config.model.embedding = 32
    config.model.layers = 1
    config.model.hidden = 256
    config.model.ar = 1.0
    config.model.dtype = "bfloat16"
    config.optim.learning_rate = 1.5e-2
    config.optim.warmup_steps = 100
    config.optim.beta2 = 0.99
    config.train.steps = 1250
    config.train.eval_every = 1_000_000  # evaluates only at the end
    config.train.checkpoint_every = 0
    config.eval.lanes = 16  # makes validation fast but approximate; scripts/evaluate.py computes the exact loss
    config.sample.length = 0
    return config
