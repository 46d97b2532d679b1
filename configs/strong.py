"""A general recipe: 2 LSTM layers for any text of 0.1 to 10 million characters.

    scripts/train.py --config=configs/strong.py --workdir=runs/my --config.corpus.path=my.txt

Three keys are for you to choose. Nothing else needs to change with the text:

- `--config.train.epochs`: more epochs take longer, and are better on most texts. Weight decay keeps the model from overfitting.
  A training has at least 3,000 steps.
- `--config.model.hidden`: 1024 units are better than 512 on most texts, and take 4 times as long.
- `--config.model.dropout`: 0 is best up to about 6 epochs. Try 0.2 if the validation loss rises before the training ends.

experiments/2026-11-29-general-recipe compares this recipe with `quickstart` and `tiny_shakespeare` on five texts.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.batch.size = 32
    config.batch.length = 32
    config.model.layers = 2
    config.model.hidden = 512
    config.model.ar = 2.0
    config.model.dtype = "bfloat16"
    config.optim.name = "adamw"
    config.optim.learning_rate = 4e-3
    config.optim.warmup_steps = 100
    config.optim.beta2 = 0.99
    config.optim.weight_decay_epochs = 1.2
    config.train.epochs = 6.0
    config.train.least_steps = 3000
    config.eval.lanes = 32  # approximates the loss during training; scripts/evaluate.py computes it exactly
    config.eval.burn_in = 200
    return config
