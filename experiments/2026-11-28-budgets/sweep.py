"""All cells with the same number of parameters on tiny Shakespeare (after Karpathy, Johnson & Li 2015, arXiv:1506.02078).

    scripts/sweep.py --config=experiments/2026-11-28-budgets/sweep.py --root=runs/budgets --parallel=2

A budget is a number of parameters. For each cell and budget, the layers have the even width that brings the number of
parameters as close to the budget as possible. Each trial has two layers and reads 3 epochs of the text, so all trials read the
same characters. Each cell is trained at each budget with all learning rates of RATES, and with further rates if the highest or
the lowest of them is best. The learning rate with the lowest validation loss is repeated with two more seeds. All this is done
with two inputs: an embedding of 64 values, and one-hot vectors.
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
INPUTS = {"embedding": {"input": "embedding", "embedding": 64}, "onehot": {}}
RATES = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
# input → (cell, budget) → the additional learning rates. Filled in after the trials with RATES.
MORE_RATES = {
    "embedding": {
        **{(cell, 50_000): (4.8e-2,) for cell in ("lstm", "minlstm")},
        **{(cell, 400_000): (1.5e-3,) for cell in ("rnn", "mogrifier_lstm")},
    },
    "onehot": {
        **{(cell, 50_000): (4.8e-2,) for cell in ("gru", "layernorm_lstm", "slstm", "minlstm")},
        **{(cell, 50_000): (4.8e-2, 9.6e-2) for cell in ("lstm", "mingru")},
        **{(cell, 130_000): (4.8e-2,) for cell in ("lstm", "gru", "layernorm_lstm")},
        ("lstm", 400_000): (4.8e-2, 9.6e-2),
        **{(cell, 130_000): (4.8e-2, 9.6e-2, 0.192) for cell in ("mingru", "minlstm")},
        **{(cell, 400_000): (4.8e-2, 9.6e-2) for cell in ("mingru", "minlstm")},
    },
}
# input → cell → for each budget, the learning rate with the lowest validation loss. Filled in after the trials with seed 0.
BEST = {
    "embedding": {
        "lstm": (2.4e-2, 1.2e-2, 1.2e-2),
        "rnn": (1.2e-2, 6e-3, 3e-3),
        "gru": (1.2e-2, 6e-3, 6e-3),
        "layernorm_lstm": (1.2e-2, 1.2e-2, 1.2e-2),
        "mogrifier_lstm": (6e-3, 6e-3, 3e-3),
        "slstm": (1.2e-2, 1.2e-2, 6e-3),
        "mingru": (1.2e-2, 6e-3, 6e-3),
        "minlstm": (2.4e-2, 1.2e-2, 6e-3),
    },
    "onehot": {
        "lstm": (4.8e-2, 2.4e-2, 4.8e-2),
        "rnn": (1.2e-2, 6e-3, 6e-3),
        "gru": (2.4e-2, 2.4e-2, 1.2e-2),
        "layernorm_lstm": (2.4e-2, 2.4e-2, 1.2e-2),
        "mogrifier_lstm": (1.2e-2, 1.2e-2, 6e-3),
        "slstm": (2.4e-2, 1.2e-2, 1.2e-2),
        "mingru": (4.8e-2, 0.192, 9.6e-2),
        "minlstm": (2.4e-2, 0.192, 9.6e-2),
    },
}


def get_config():
    config = base.get_config()
    config.model.input = "onehot"
    config.optim.warmup_steps = 50
    config.train.epochs = 3.0
    config.train.checkpoint_every = 1000
    return config


@functools.cache
def width(cell: str, budget: int, encoding: str) -> int:
    """The even width with which a model of two layers of `cell` has about `budget` parameters."""

    def parameters(hidden: int) -> int:
        config = get_config()
        config.model.update({"cell": cell, "hidden": hidden} | INPUTS[encoding])
        return stack.parameter_count(jax.eval_shape(stack.functions(config, SYMBOLS).init, jax.random.key(0)))

    widths = range(16, 512, 2)
    above = bisect.bisect_left(widths, budget, key=parameters)
    return min(widths[above - 1 : above + 1], key=lambda hidden: abs(parameters(hidden) - budget))


def trials(cell: str, budget: int, encoding: str, rates: tuple[float, ...]):
    keys = {f"model.{key}": [value] for key, value in INPUTS[encoding].items()}
    hidden = {"model.cell": [cell], "model.hidden": [width(cell, budget, encoding)]}
    return product(hidden | {"optim.learning_rate": rates} | keys)


def with_input(encoding: str):
    every = chain(*(trials(cell, budget, encoding, RATES) for budget in BUDGETS for cell in CELLS))
    more = chain(*(trials(cell, budget, encoding, rates) for (cell, budget), rates in MORE_RATES[encoding].items()))
    best = chain(
        *(
            trials(cell, budget, encoding, (rate,))
            for cell, rates in BEST[encoding].items()
            for budget, rate in zip(BUDGETS, rates, strict=True)
        )
    )
    return chain(every, more, repeat(best, seeds=[1, 2]))


def sweep():
    return chain(*(with_input(encoding) for encoding in INPUTS))
