"""Reads a text with a trained model, and records what each layer computes.

The recorded values are the state of the layer, its gates, and other values such as the candidate of its new state. A series is
one of these quantities, such as the forget gate of layer 0. Each unit of a series has one value (its activation) for each
symbol of the text. All values of a long text would need too much memory. Therefore, the values are kept only for the beginning
of the text. Sums over the values are computed for the whole text; see `Moments`.

Letters in the names of arrays: P symbols of the text, T symbols of a window, J units of all series one after the other, H units
of one series, K properties of a symbol (see `findings`), B rows (always 1), V size of the vocabulary, A likeliest symbols.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charlm.models import stack
from charlm.models.stack import Functions

WINDOW = 512  # symbols that one call of the compiled program reads
ALTERNATIVES = 5  # the number of likeliest next symbols that are recorded
LEFT, RIGHT = 0.1, 0.9  # a gate below LEFT or above RIGHT is saturated (Karpathy, Johnson & Li 2015)
HALVES = 2  # the text is divided into two halves, and each half has its own sums


class Series(NamedTuple):
    """A quantity of a layer.

    Attributes:
      layer: the number of the layer, from 0.
      name: the name of the quantity, such as `h` or `f`.
      is_gate: whether the quantity is a gate, whose values are from 0 to 1.
      columns: the columns of this quantity in an array with the axis J.
    """

    layer: int
    name: str
    is_gate: bool
    columns: slice

    @property
    def units(self) -> int:
        return self.columns.stop - self.columns.start


class Moments(NamedTuple):
    """Sums over some symbols of a text, from which correlations are computed. All are float64.

    Attributes:
      symbols: the number of symbols.
      x_K, xx_K: the sums of the properties and of their squares.
      y_J, yy_J: the sums of the activations and of their squares.
      xy_KJ: the sums of the products of a property and an activation.
    """

    symbols: int
    x_K: np.ndarray
    xx_K: np.ndarray
    y_J: np.ndarray
    yy_J: np.ndarray
    xy_KJ: np.ndarray


class Reading(NamedTuple):
    """What a model computed for a text.

    Attributes:
      series: the quantities of all layers.
      values_PJ: float32, the activations after each symbol at the beginning of the text. The argument `kept` of `read` is the
        number of these symbols.
      nats_P: float64, the surprisal of each symbol. nan if the state is zero before the symbol, because the model then does not
        predict it.
      likeliest_PA: the ids that are likeliest after each symbol, in descending order of probability.
      probabilities_PA: the probabilities of these ids.
      halves: the sums over the first half of the text, and the sums over the second half.
      saturated: float64 (2, J). For each unit of a gate, row 0 has the fraction of the symbols at which the gate is below LEFT,
        and row 1 has the fraction of the symbols at which the gate is above RIGHT. The columns of other quantities have no
        meaning.
    """

    series: list[Series]
    values_PJ: np.ndarray
    nats_P: np.ndarray
    likeliest_PA: np.ndarray
    probabilities_PA: np.ndarray
    halves: tuple[Moments, ...]
    saturated: np.ndarray


class Reader:
    """The compiled programs that read texts with one model.

    Attributes:
      series: the quantities of all layers.
    """

    def __init__(self, functions: Functions, params: Any):
        self._functions = functions
        self._weights = jax.jit(functions.stepwise, static_argnums=1)(params, 1)
        self._zero_carry = jax.device_put(functions.zero_carry(1), jax.tree.leaves(params)[0].sharding)
        self.series, self._outputs = self._quantities()
        self._window = jax.jit(self._make_window())

    def read(
        self,
        ids_P: np.ndarray,
        first_P: np.ndarray,
        properties_PK: np.ndarray,
        kept: int,
        progress: Callable[[int, float], None] = lambda chars, nats: None,
    ) -> Reading:
        """Reads a text one symbol after the other.

        Args:
          ids_P: the ids of the text.
          first_P: bool, whether the state is set to zero before a symbol. It must be True for the first symbol.
          properties_PK: the properties of each symbol, with which the activations are correlated.
          kept: the number of symbols at the beginning of the text whose activations are kept.
          progress: called after each window with its number of symbols and the sum of their nats.
        """
        total, width = len(ids_P), self.series[-1].columns.stop
        values_PJ = np.empty((min(kept, total), width), np.float32)
        halves = [_no_moments(properties_PK.shape[1], width) for _ in range(HALVES)]
        saturated = np.zeros((2, width))
        predictions = []
        for start, results in self._windows(ids_P, first_P):
            values_TJ, *predicted = (each[: total - start] for each in jax.device_get(results))
            values_PJ[start : start + len(values_TJ)] = values_TJ[: max(0, kept - start)]
            for half, (low, high) in enumerate(half_bounds(total)):
                part = slice(max(0, low - start), max(0, high - start))
                halves[half] = _added(halves[half], properties_PK[start:][: len(values_TJ)][part], values_TJ[part])
            saturated += (values_TJ < LEFT).sum(0), (values_TJ > RIGHT).sum(0)
            predictions.append(predicted)
            progress(len(values_TJ), float(predicted[0].sum(dtype=np.float64)))
        next_nats_P, likeliest_PA, probabilities_PA = (np.concatenate(parts) for parts in zip(*predictions, strict=True))
        nats_P = np.concatenate([[np.nan], next_nats_P[:-1].astype(np.float64)])
        nats_P[first_P] = np.nan
        return Reading(self.series, values_PJ, nats_P, likeliest_PA, probabilities_PA, tuple(halves), saturated / total)

    def _windows(self, ids_P: np.ndarray, first_P: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Yields the start of each window, and what the program computes for it. The last window is padded at its end."""
        count = -(-len(ids_P) // WINDOW) * WINDOW
        ids, first = np.zeros(count + 1, np.int32), np.zeros(count, bool)
        ids[: len(ids_P)], first[: len(ids_P)] = ids_P, first_P
        carry = self._zero_carry
        for start in range(0, count, WINDOW):
            part = slice(start, start + WINDOW)
            carry, results = self._window(self._weights, ids[part], ids[start + 1 : start + WINDOW + 1], first[part], carry)
            yield start, results

    def _quantities(self) -> tuple[list[Series], list[bool]]:
        """Returns the series of all layers, and for each layer whether its output is a series of its own.

        In most cells, the output is also a part of the state, so it must not become a second series. To find this out, the
        model reads two symbols, and the output of each layer is compared with the parts of its state.
        """

        def two_steps(weights, carry):
            seen: list[stack.Seen] = []
            for id_ in range(2):
                seen.clear()
                _, carry = self._functions.step(weights, jnp.full(1, id_), carry, seen)
            return seen

        series: list[Series] = []
        outputs, start = [], 0
        for layer, seen in enumerate(jax.device_get(jax.jit(two_steps)(self._weights, self._zero_carry))):
            outputs.append(not any(np.array_equal(seen.output_BH, leaf) for leaf in seen.state.values()))
            for name, array, is_gate in _arrays(seen, outputs[-1]):
                units = int(np.prod(array.shape[1:]))
                series.append(Series(layer, name, is_gate, slice(start, start + units)))
                start += units
        return series, outputs

    def _make_window(self) -> Callable:
        def window(weights, ids_T, following_T, first_T, carry):
            def read_symbol(carry, each):
                id_, following, is_first = each
                seen: list[stack.Seen] = []
                carry = stack.keep_rows(carry, jnp.logical_not(is_first)[None])
                logits_BV, carry = self._functions.step(weights, id_[None], carry, seen)
                values = [
                    array.reshape(-1)
                    for layer, has_output in zip(seen, self._outputs, strict=True)
                    for _, array, _ in _arrays(layer, has_output)
                ]
                log_p_V = jax.nn.log_softmax(logits_BV[0])
                best_A, ids_A = jax.lax.top_k(log_p_V, min(ALTERNATIVES, len(log_p_V)))
                return carry, (jnp.concatenate(values), -log_p_V[following], ids_A, jnp.exp(best_A))

            return jax.lax.scan(read_symbol, carry, (ids_T, following_T, first_T))

        return window


def half_bounds(total: int) -> list[tuple[int, int]]:
    """(start, end) of each half of a text of `total` symbols."""
    middle = total // 2
    return [(0, middle), (middle, total)]


def _arrays(seen: stack.Seen, has_output: bool) -> list[tuple[str, Any, bool]]:
    """(name, array, whether the quantity is a gate) for each quantity of a layer.

    Args:
      seen: what the layer computed.
      has_output: whether the output of the layer is a quantity of its own.
    """
    # JAX sorts the keys of a dict that a compiled function returns, but this function is also called inside such a function,
    # where the keys are not sorted yet. It therefore sorts them itself, so that the order is always the same. h comes first,
    # because it is the output of most layers.
    named = [(name, seen.state[name], False) for name in sorted(seen.state, key=lambda name: (name != "h", name))]
    named += [(name, seen.inside.gates[name], True) for name in sorted(seen.inside.gates)]
    named += [(name, seen.inside.others[name], False) for name in sorted(seen.inside.others)]
    return [("output", seen.output_BH, False), *named] if has_output else named


def _no_moments(properties: int, width: int) -> Moments:
    zeros = np.zeros
    return Moments(0, zeros(properties), zeros(properties), zeros(width), zeros(width), zeros((properties, width)))


def _added(sums: Moments, x_TK: np.ndarray, y_TJ: np.ndarray) -> Moments:
    if not len(y_TJ):
        return sums
    x, y = x_TK.astype(np.float64), y_TJ.astype(np.float64)
    return Moments(
        symbols=sums.symbols + len(y),
        x_K=sums.x_K + x.sum(0),
        xx_K=sums.xx_K + (x * x).sum(0),
        y_J=sums.y_J + y.sum(0),
        yy_J=sums.yy_J + (y * y).sum(0),
        xy_KJ=sums.xy_KJ + x.T @ y,
    )


def correlations(sums: Moments) -> np.ndarray:
    """The correlation of each property with each unit, float64 (K, J). nan if the property or the unit is constant."""
    count = max(1, sums.symbols)
    x_K, y_J = sums.x_K / count, sums.y_J / count
    covariance_KJ = sums.xy_KJ / count - x_K[:, None] * y_J[None, :]
    spread_K, spread_J = _spread(sums.xx_K / count, x_K), _spread(sums.yy_J / count, y_J)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(covariance_KJ / (spread_K[:, None] * spread_J[None, :]), -1, 1)


def _spread(mean_square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The standard deviation. nan if it is so small that it may come only from rounding errors."""
    variance = mean_square - mean * mean
    return np.sqrt(np.where(variance > 1e-12 * np.maximum(mean_square, 1e-300), variance, np.nan))


def named(series: Sequence[Series], column: int) -> tuple[Series, int]:
    """The series to which a column of the axis J belongs, and the number of the unit in this series."""
    found = next(each for each in series if each.columns.start <= column < each.columns.stop)
    return found, column - found.columns.start
