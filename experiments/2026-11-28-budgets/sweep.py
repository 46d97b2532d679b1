"""All cells with the same number of parameters on tiny Shakespeare (after Karpathy, Johnson & Li 2015, arXiv:1506.02078).

    scripts/sweep.py --config=experiments/2026-11-28-budgets/sweep.py --root=runs/budgets --parallel=2

Each trial has two layers and reads 3 epochs of the text, so all trials read the same characters. A cell has a width for each
budget, such that the number of parameters is as close to the budget as an even width allows. Each cell and budget is trained
with all learning rates of RATES. The rate with the lowest validation loss is repeated with two more seeds.
"""

import bisect
import functools

import jax

from charlm.models import stack
from charlm.sweeps.sweep import chain, product, repeat
from configs import base

SYMBOLS = 65  # size of the vocabulary of tiny Shakespeare
BUDGETS = (50_000, 130_000, 400_000)
CELLS = ("lstm", "rnn", "gru", "layernorm_lstm", "mogrifier_lstm", "slstm", "mingru", "minlstm")
RATES = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
# The rates that are tried in addition, because the best of RATES is at the edge. Filled in after the trials with RATES.
MORE_RATES = {}
# The rate with the lowest validation loss of each cell and budget. Filled in after the trials with seed 0.
BEST = {}


def get_config():
    config = base.get_config()
    config.model.input = "onehot"
    config.optim.warmup_steps = 50
    config.train.epochs = 3.0
    config.train.checkpoint_every = 1000
    return config


@functools.cache
def width(cell: str, budget: int) -> int:
    """The even width with which a model of two layers of `cell` has about `budget` parameters."""

    def parameters(hidden: int) -> int:
        config = get_config()
        config.model.cell, config.model.hidden = cell, hidden
        return stack.parameter_count(jax.eval_shape(stack.functions(config, SYMBOLS).init, jax.random.key(0)))

    widths = range(16, 512, 2)
    above = bisect.bisect_left(widths, budget, key=parameters)
    return min(widths[above - 1 : above + 1], key=lambda hidden: abs(parameters(hidden) - budget))


def trials(cell: str, budget: int, rates: tuple[float, ...]):
    return product({"model.cell": [cell], "model.hidden": [width(cell, budget)], "optim.learning_rate": rates})


def sweep():
    every = chain(*(trials(cell, budget, RATES) for budget in BUDGETS for cell in CELLS))
    more = chain(*(trials(cell, budget, rates) for (cell, budget), rates in MORE_RATES.items()))
    best = chain(*(trials(cell, budget, (rate,)) for (cell, budget), rate in BEST.items()))
    return chain(every, more, repeat(best, seeds=[1, 2]))
