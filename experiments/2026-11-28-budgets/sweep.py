"""All cells with the same number of parameters on tiny Shakespeare (after Karpathy, Johnson & Li 2015, arXiv:1506.02078).

    scripts/sweep.py --config=experiments/2026-11-28-budgets/sweep.py --root=runs/budgets --parallel=2

A budget is a number of parameters. For each cell and budget, the layers have the even width that brings the number of
parameters as close to the budget as possible. Each trial has two layers and reads 3 epochs of the text, so all trials read the
same characters. Each cell is trained at each budget with all learning rates of RATES. For each cell and budget, the learning
rate with the lowest validation loss is repeated with two more seeds.

The input is one-hot. The last trials have an embedding instead, for four cells and one budget, to see whether the order of the
cells depends on the input.
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
    **{(cell, 50_000): (4.8e-2,) for cell in ("gru", "layernorm_lstm", "slstm", "minlstm")},
    **{(cell, 50_000): (4.8e-2, 9.6e-2) for cell in ("lstm", "mingru")},
    **{(cell, 130_000): (4.8e-2,) for cell in ("lstm", "gru", "layernorm_lstm")},
    **{(cell, 130_000): (4.8e-2, 9.6e-2, 0.192) for cell in ("mingru", "minlstm")},
    **{(cell, 400_000): (4.8e-2, 9.6e-2) for cell in ("mingru", "minlstm")},
    ("lstm", 400_000): (4.8e-2, 9.6e-2),
}
# (cell, budget) → the learning rate with the lowest validation loss. Filled in after the trials with seed 0.
BEST = {
    ("lstm", 50_000): 4.8e-2,
    ("rnn", 50_000): 1.2e-2,
    ("gru", 50_000): 2.4e-2,
    ("layernorm_lstm", 50_000): 2.4e-2,
    ("mogrifier_lstm", 50_000): 1.2e-2,
    ("slstm", 50_000): 2.4e-2,
    ("mingru", 50_000): 4.8e-2,
    ("minlstm", 50_000): 2.4e-2,
    ("lstm", 130_000): 2.4e-2,
    ("rnn", 130_000): 6e-3,
    ("gru", 130_000): 2.4e-2,
    ("layernorm_lstm", 130_000): 2.4e-2,
    ("mogrifier_lstm", 130_000): 1.2e-2,
    ("slstm", 130_000): 1.2e-2,
    ("mingru", 130_000): 9.6e-2,
    ("minlstm", 130_000): 9.6e-2,
    ("lstm", 400_000): 4.8e-2,
    ("rnn", 400_000): 6e-3,
    ("gru", 400_000): 1.2e-2,
    ("layernorm_lstm", 400_000): 1.2e-2,
    ("mogrifier_lstm", 400_000): 6e-3,
    ("slstm", 400_000): 1.2e-2,
    ("mingru", 400_000): 1.2e-2,
    ("minlstm", 400_000): 1.2e-2,
}
EMBEDDED_CELLS = ("lstm", "gru", "layernorm_lstm", "slstm")
EMBEDDED_RATES = (6e-3, 1.2e-2, 2.4e-2)


def get_config():
    config = base.get_config()
    config.model.input = "onehot"
    config.optim.warmup_steps = 50
    config.train.epochs = 3.0
    config.train.checkpoint_every = 1000
    return config


@functools.cache
def width(cell: str, budget: int, **keys) -> int:
    """The even width with which a model of two layers of `cell` has about `budget` parameters. `keys` are keys of the model."""

    def parameters(hidden: int) -> int:
        config = get_config()
        config.model.update({"cell": cell, "hidden": hidden} | keys)
        return stack.parameter_count(jax.eval_shape(stack.functions(config, SYMBOLS).init, jax.random.key(0)))

    widths = range(16, 512, 2)
    above = bisect.bisect_left(widths, budget, key=parameters)
    return min(widths[above - 1 : above + 1], key=lambda hidden: abs(parameters(hidden) - budget))


def trials(cell: str, budget: int, rates: tuple[float, ...], **keys):
    settings = {"model.cell": [cell], "model.hidden": [width(cell, budget, **keys)], "optim.learning_rate": rates}
    return product(settings | {f"model.{key}": [value] for key, value in keys.items()})


def sweep():
    every = chain(*(trials(cell, budget, RATES) for budget in BUDGETS for cell in CELLS))
    more = chain(*(trials(cell, budget, rates) for (cell, budget), rates in MORE_RATES.items()))
    best = chain(*(trials(cell, budget, (rate,)) for (cell, budget), rate in BEST.items()))
    embedded = chain(*(trials(cell, 130_000, EMBEDDED_RATES, input="embedding", embedding=64) for cell in EMBEDDED_CELLS))
    return chain(every, more, repeat(best, seeds=[1, 2]), embedded)
