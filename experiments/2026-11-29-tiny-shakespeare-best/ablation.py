"""What matters in the general recipe: each of its choices is undone alone, on tiny Shakespeare.

    python scripts/sweep.py --config=experiments/2026-11-29-tiny-shakespeare-best/ablation.py --root=runs/ablation \
      --parallel=2 --config.devices=1 --config.sample.length=0

The base is configs/strong.py with three epochs, so that a trial takes 5 to 9 min on one core. The config
tiny_shakespeare_best.py has twice the units and four epochs. All trials have seed 0, and those of MOST have three seeds.
"""

from charlm.sweeps.sweep import chain, repeat
from configs import strong

REMOVED = {
    "weight decay": {"optim.weight_decay_epochs": 0.0, "optim.weight_rms": 0.0, "optim.learning_rate": 4e-3},
    "activation regularisation": {"model.ar": 0.0},
    "state noise": {"model.state_noise": 0.0},
    "beta2 of 0.99": {"optim.beta2": 0.999},
    "warm-up": {"optim.warmup_steps": 0},
    "cosine": {"optim.schedule": "constant"},
    "clipping": {"optim.clip_norm": 0.0},
    "high learning rate": {"optim.weight_rms": 0.0, "optim.learning_rate": 4e-3},
    "small batch": {"batch.size": 64},
    "short window": {"batch.size": 16, "batch.length": 64},
    "carried state": {"batch.framing": "chunks", "eval.framing": "stream"},
    "second layer": {"model.layers": 1},
    "width of 512": {"model.hidden": 256},
    "embedding": {"model.input": "onehot"},
    "forget bias of 1": {"model.forget_bias": 0.0},
    "bfloat16": {"model.dtype": "float32"},
}
ADDED = {
    "dropout of 0.1": {"model.dropout": 0.1},
    "weight drop of 0.1": {"model.weight_drop": 0.1},
    "mean of the weights": {"optim.average": "ema", "optim.average_decay": 0.995},
    "layer normalisation": {"model.cell": "layernorm_lstm"},
    "GRU": {"model.cell": "gru"},
}
# The five removals with the largest effects with seed 0, and the two regularisers.
MOST = (
    "cosine",
    "width of 512",
    "high learning rate",
    "carried state",
    "second layer",
    "weight decay",
    "activation regularisation",
)


def get_config():
    config = strong.get_config()
    config.train.epochs = 3.0
    config.train.least_steps = 0
    return config


def sweep():
    changes = REMOVED | ADDED
    return chain([{}], changes.values(), repeat([{}, *(changes[name] for name in MOST)], seeds=[1, 2]))
