"""Gradients by the chain rule, for NumPy arrays in float64.

    x = Value(np.ones((2, 3)))
    (gradient,) = gradients((tanh(x) * x).sum(), [x])

charlm computes its gradients with JAX and with hand-written formulas. This module shares no code with either. It is simple
instead of fast.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

_numbers = itertools.count()


class Value:
    """An array that knows from which values it was computed.

    Attributes:
      array: the float64 array.
      parents: (value, function) for each operand. The function maps the gradient of this value to the gradient of the operand.
      number: values that were computed later have larger numbers.
    """

    __array_ufunc__ = None  # NumPy then leaves `array + value` to this class

    def __init__(self, array, parents: Sequence[tuple["Value", Callable]] = ()):
        self.array, self.parents, self.number = np.asarray(array, np.float64), parents, next(_numbers)

    def __add__(self, other):
        other = _value(other)
        return Value(self.array + other.array, [(self, _as(self)), (other, _as(other))])

    def __mul__(self, other):
        other = _value(other)
        of_self, of_other = _as(self), _as(other)
        parents = [(self, lambda d: of_self(d * other.array)), (other, lambda d: of_other(d * self.array))]
        return Value(self.array * other.array, parents)

    def __truediv__(self, other):
        other = _value(other)
        return self * _elementwise(other, 1 / other.array, -1 / other.array**2)

    def __matmul__(self, other):
        other = _value(other)
        parents = [(self, lambda d: d @ other.array.T), (other, lambda d: self.array.T @ d)]
        return Value(self.array @ other.array, parents)

    def __getitem__(self, index):
        def back(d):
            whole = np.zeros_like(self.array)
            if isinstance(index, np.ndarray):  # the ids of rows, of which several may be equal
                np.add.at(whole, index, d)
            else:
                whole[index] = d
            return whole

        return Value(self.array[index], [(self, back)])

    def __sub__(self, other):
        return self + _value(other) * -1.0

    def __rsub__(self, other):
        return _value(other) - self

    __radd__, __rmul__ = __add__, __mul__

    def sum(self):
        return Value(self.array.sum(), [(self, lambda d: np.broadcast_to(d, self.array.shape))])

    def mean(self):
        """The mean over the last axis, which stays as an axis of length 1."""
        size = self.array.shape[-1]
        return Value(self.array.mean(-1, keepdims=True), [(self, lambda d: np.broadcast_to(d / size, self.array.shape))])


def tanh(x: Value) -> Value:
    y = np.tanh(x.array)
    return _elementwise(x, y, 1 - y**2)


def sigmoid(x: Value) -> Value:
    y = 1 / (1 + np.exp(-x.array))
    return _elementwise(x, y, y * (1 - y))


def exp(x: Value) -> Value:
    y = np.exp(x.array)
    return _elementwise(x, y, y)


def sqrt(x: Value) -> Value:
    y = np.sqrt(x.array)
    return _elementwise(x, y, 0.5 / y)


def split(x: Value, parts: int) -> list[Value]:
    """Divides the last axis into equal parts."""
    size = x.array.shape[-1] // parts
    return [x[..., part * size : (part + 1) * size] for part in range(parts)]


def joined(values: Sequence[Value]) -> Value:
    """The values side by side on the last axis."""
    ends = np.cumsum([value.array.shape[-1] for value in values])
    places = [slice(end - value.array.shape[-1], end) for value, end in zip(values, ends, strict=True)]
    parents = [(value, lambda d, place=place: d[..., place]) for value, place in zip(values, places, strict=True)]
    return Value(np.concatenate([value.array for value in values], axis=-1), parents)


def where(condition: np.ndarray, x: Value, y: Value) -> Value:
    parents = [(x, lambda d: np.where(condition, d, 0)), (y, lambda d: np.where(condition, 0, d))]
    return Value(np.where(condition, x.array, y.array), parents)


def nats(logits_BV: Value, targets_B: np.ndarray) -> Value:
    """The cross-entropy of each row, (B,): the negative logarithm of the probability of its target."""
    shifted = logits_BV.array - logits_BV.array.max(-1, keepdims=True)
    probabilities_BV = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    one_hot_BV = np.eye(shifted.shape[-1])[targets_B]
    slope_BV = probabilities_BV - one_hot_BV
    return Value(-np.log((probabilities_BV * one_hot_BV).sum(-1)), [(logits_BV, lambda d: d[:, None] * slope_BV)])


def gradients(scalar: Value, leaves: Sequence[Value]) -> list[np.ndarray]:
    """The gradient of `scalar` with respect to each of the leaves."""
    reached: dict[int, Value] = {}
    waiting = [scalar]
    while waiting:
        value = waiting.pop()
        if value.number not in reached:
            reached[value.number] = value
            waiting += [parent for parent, _ in value.parents]
    found = {scalar.number: np.ones_like(scalar.array)}
    for number in sorted(reached, reverse=True):  # every value before its operands
        for parent, back in reached[number].parents:
            found[parent.number] = found.get(parent.number, 0) + back(found[number])
    return [found.get(leaf.number, np.zeros_like(leaf.array)) for leaf in leaves]


def _value(x) -> Value:
    return x if isinstance(x, Value) else Value(x)


def _elementwise(x: Value, y: np.ndarray, slope: np.ndarray) -> Value:
    return Value(y, [(x, lambda d: d * slope)])


def _as(x: Value) -> Callable:
    """A function that sums a gradient over the axes along which `x` was repeated to fit another array."""
    shape = x.array.shape

    def back(d):
        d = d.sum(tuple(range(d.ndim - len(shape))))
        repeated = tuple(axis for axis, size in enumerate(shape) if size == 1 and d.shape[axis] > 1)
        return d.sum(repeated, keepdims=True) if repeated else d

    return back
