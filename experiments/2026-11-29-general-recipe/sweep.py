"""The general recipe against two others on five texts, with the same training time.

    python experiments/2026-11-29-general-recipe/texts.py runs/texts
    python scripts/sweep.py --config=experiments/2026-11-29-general-recipe/sweep.py --root=runs/general --parallel=2 \
      --config.devices=1 --config.sample.length=0

With STEPS, all trainings of a text take about the same time: 5 to 6 min on one core of an Intel Xeon with AMX. The
learning-rate schedule ends with the training.
"""

import itertools

from charlm.config import load
from charlm.sweeps.sweep import Overrides, Sweep
from configs import base, quickstart, strong, tiny_shakespeare

TEXTS = ("paradise_lost", "lua", "bible", "plays", "speeches")
RECIPES = (strong, tiny_shakespeare, quickstart)
STEPS = (3000, 1540, 11700)
EVALUATION = {"eval.lanes": 32, "eval.burn_in": 200}


def get_config():
    return base.get_config()


def changes(recipe) -> Overrides:
    """The keys in which the recipe differs from the default config."""
    default, values = load.flatten(base.get_config()), load.flatten(recipe.get_config())
    return {key: value for key, value in values.items() if value != default[key]}


def sweep() -> Sweep:
    return [
        changes(recipe) | EVALUATION | {"train.steps": steps, "corpus.path": f"runs/texts/{text}.txt"}
        for text, (recipe, steps) in itertools.product(TEXTS, zip(RECIPES, STEPS, strict=True))
    ]
