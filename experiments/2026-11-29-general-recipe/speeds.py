"""The speeds of the three recipes of sweep.py, each measured three times, on tiny Shakespeare.

    python scripts/sweep.py --config=experiments/2026-11-29-general-recipe/speeds.py --root=runs/speeds --parallel=2 \
      --config.devices=1 --config.sample.length=0
    python scripts/compare.py runs/speeds --each --csv

A trial takes 40 to 60 s on one core of an Intel Xeon with AMX.
"""

import os
import pathlib
import sys

from charlm.sweeps.sweep import Sweep, product

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parent))
import sweep as five_texts

STEPS = (400, 200, 1500)

get_config = five_texts.get_config


def sweep() -> Sweep:
    trials = [
        five_texts.changes(recipe) | five_texts.EVALUATION | {"train.steps": steps}
        for recipe, steps in zip(five_texts.RECIPES, STEPS, strict=True)
    ]
    return product({"seed": [0, 1, 2]}, trials)  # the recipes in turn
