"""All cells with the same number of parameters on tiny Shakespeare (after Karpathy, Johnson & Li 2015, arXiv:1506.02078).

    scripts/sweep.py --config=experiments/2026-11-28-budgets/sweep.py --root=runs/budgets --parallel=2

A budget is a number of parameters. For each cell and budget, the layers have the even width that brings the number of
parameters as close to the budget as possible. Each trial has two layers and reads 3 epochs of the text, so all trials read the
same characters. Each cell is trained at each budget with all learning rates of RATES. For each cell and budget, the learning
rate with the lowest validation loss is repeated with two more seeds.
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
# (cell, budget) → additional learning rates, if the best of RATES is the lowest or the highest of RATES. These are filled in
# after the trials with RATES.
MORE_RATES = {
    **{(cell, 50_000): (4.8e-2,) for cell in ("lstm", "gru", "layernorm_lstm", "slstm", "mingru", "minlstm")},
    **{(cell, 130_000): (4.8e-2,) for cell in ("lstm", "gru", "layernorm_lstm")},
}
# (cell, budget) → the learning rate with the lowest validation loss. Filled in after the trials with seed 0.
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
