"""The general recipe against two others on five texts, with similar training times.

    python experiments/2026-11-29-general-recipe/texts.py runs/texts
    python scripts/sweep.py --config=experiments/2026-11-29-general-recipe/sweep.py --root=runs/general --parallel=2 \
      --config.devices=1 --config.sample.length=0

With STEPS, a training takes about 5 min on one core of an Intel Xeon with AMX. The learning-rate schedule ends with the
training.
"""

import itertools

from charlm.config import load
from charlm.sweeps.sweep import Overrides, Sweep
from configs import base, quickstart, strong, tiny_shakespeare

TEXTS = ("paradise_lost", "lua", "bible", "plays", "speeches")
RECIPES = (strong, tiny_shakespeare, quickstart)
STEPS = (2700, 1540, 11700)
# Each text with a multiple of STEPS. The longest text is also trained for twice the time.
BUDGETS = (*((text, 1) for text in TEXTS), ("speeches", 2))
EVALUATION = {"eval.lanes": 32, "eval.burn_in": 200}


def get_config():
    return base.get_config()


def changes(recipe) -> Overrides:
    """The keys in which the recipe differs from the default config."""
    default, values = load.flatten(base.get_config()), load.flatten(recipe.get_config())
    return {key: value for key, value in values.items() if value != default[key]}


def sweep() -> Sweep:
    return [
        changes(recipe) | EVALUATION | {"train.steps": times * steps, "corpus.path": f"runs/texts/{text}.txt"}
        for (text, times), (recipe, steps) in itertools.product(BUDGETS, zip(RECIPES, STEPS, strict=True))
    ]
