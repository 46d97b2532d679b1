"""The network and its training step as a textbook writes them: NumPy, float64, one character after the other.

The check compares charlm on a device with this module. The module shares no code with charlm. It follows the formulas at the
top of the files in charlm/models/cells/, and its gradients come from `autodiff`.

Parameters are a dict from names to arrays. The names are those of charlm, such as `lstm_0/input_kernel`.

Letters: B rows, T characters of a window, I input features, H hidden units, E embedding, V vocabulary.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from device.autodiff import Value, exp, gradients, joined, nats, sigmoid, split, sqrt, tanh, where

EPSILON = 1e-5  # of layer normalisation

Arrays = dict[str, np.ndarray]


def lstm(p, x, state):
    c, h = state
    i, f, g, o = split(x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"], 4)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
    return h, (c, h)


def rnn(p, x, state):
    (h,) = state
    h = tanh(x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"])
    return h, (h,)


def gru(p, x, state):
    (h,) = state
    in_r, in_z, in_n = split(x @ p["input_kernel"] + p["bias"], 3)
    rec_r, rec_z, rec_n = split(h @ p["recurrent_kernel"], 3)
    r, z = sigmoid(in_r + rec_r), sigmoid(in_z + rec_z)
    n = tanh(in_n + r * (rec_n + p["recurrent_bias"]))
    h = (1 - z) * n + z * h
    return h, (h,)


def layernorm_lstm(p, x, state):
    c, h = state
    recurrent = _normalised(h @ p["recurrent_kernel"]) * p["recurrent_gain"]
    i, f, g, o = split(_normalised(x @ p["input_kernel"]) * p["input_gain"] + recurrent + p["bias"], 4)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(_normalised(c) * p["cell_gain"] + p["cell_bias"])
    return h, (c, h)


def mogrifier_lstm(p, x, state):
    c, h = state
    for k in range(sum(name.startswith("round_bias") for name in p)):
        if k % 2 == 0:
            x = 2 * sigmoid(h @ p[f"round_kernel_{k}"] + p[f"round_bias_{k}"]) * x
        else:
            h = 2 * sigmoid(x @ p[f"round_kernel_{k}"] + p[f"round_bias_{k}"]) * h
    return lstm(p, x, (c, h))


def slstm(p, x, state):
    """The cell without its stabiliser, which changes no output. The state is (c, n, h)."""
    c, n, h = state
    heads = 4 * h.array.shape[1] // p["recurrent_kernel"].array.shape[1]
    units = h.array.shape[1] // heads
    blocks = [p["recurrent_kernel"][head * units : (head + 1) * units] for head in range(heads)]
    recurrent = [split(part @ block, 4) for part, block in zip(split(h, heads), blocks, strict=True)]
    recurrent = joined([of_head[gate] for gate in range(4) for of_head in recurrent])
    i, f, z, o = split(x @ p["input_kernel"] + recurrent + p["bias"], 4)
    c = sigmoid(f) * c + exp(i) * tanh(z)
    n = sigmoid(f) * n + exp(i)
    h = sigmoid(o) * c / n
    return h, (c, n, h)


def mingru(p, x, state):
    (h,) = state
    u, v = split(x @ p["input_kernel"] + p["bias"], 2)
    z = sigmoid(u)
    h = (1 - z) * h + z * _candidate(v)
    return h, (h,)


def minlstm(p, x, state):
    (h,) = state
    f, i, v = split(x @ p["input_kernel"] + p["bias"], 3)
    f, i = sigmoid(f), sigmoid(i)
    h = f / (f + i) * h + i / (f + i) * _candidate(v)
    return h, (h,)


class Cell(NamedTuple):
    """A cell: its step (params of a layer, x, state) → (output, state), and the number of arrays of its state."""

    step: Callable
    states: int


CELLS = {
    "lstm": Cell(lstm, 2),
    "rnn": Cell(rnn, 1),
    "gru": Cell(gru, 1),
    "layernorm_lstm": Cell(layernorm_lstm, 2),
    "mogrifier_lstm": Cell(mogrifier_lstm, 2),
    "slstm": Cell(slstm, 3),
    "mingru": Cell(mingru, 1),
    "minlstm": Cell(minlstm, 1),
}


class Network(NamedTuple):
    """A stack of layers of one cell. Without an `embedding` among the parameters, the inputs are one-hot vectors."""

    cell: str
    layers: int
    hidden: int

    def zero_state(self, rows: int) -> list[tuple[Value, ...]]:
        """The state of each layer before the first character."""
        return [tuple(Value(np.zeros((rows, self.hidden))) for _ in range(CELLS[self.cell].states)) for _ in range(self.layers)]

    def logits(self, params: Mapping[str, Value], ids_B: np.ndarray, states: Sequence) -> tuple[Value, list]:
        """Reads one character of each row. Returns the logits (B, V) of the next character, and the states."""
        one_hot_VV = np.eye(len(params["head_bias"].array))
        x = params["embedding"][ids_B] if "embedding" in params else Value(one_hot_VV[ids_B])
        after = []
        for layer, state in enumerate(states):
            x, state = CELLS[self.cell].step(_of_layer(params, f"{self.cell}_{layer}/"), x, state)
            after.append(state)
        return x @ params["head_kernel"] + params["head_bias"], after

    def loss(self, params: Mapping[str, Value], batch: Any, states: Sequence) -> tuple[Value, list]:
        """The mean nats of the characters of a batch, and the states after it.

        Args:
          batch: has the arrays inputs_BT, targets_BS with S = T, weights_BS and reset_B, as `charlm.data.batches.Batch`.
          states: the states before the batch.
        """
        keep_B1 = np.logical_not(batch.reset_B)[:, None].astype(np.float64)
        states = [tuple(Value(part.array * keep_B1) for part in state) for state in states]
        total = Value(0.0)
        for ids_B, targets_B, weights_B in zip(batch.inputs_BT.T, batch.targets_BS.T, batch.weights_BS.T, strict=True):
            logits_BV, states = self.logits(params, ids_B, states)
            total = total + (nats(logits_BV, targets_B) * weights_B.astype(np.float64)).sum()
        return total / float(batch.weights_BS.sum()), states

    def loss_of_text(self, params: Arrays, ids_N: np.ndarray) -> float:
        """The mean nats of all characters of a text except the first. The state is carried through the whole text."""
        values, states, total = as_values(params), self.zero_state(1), 0.0
        for before, target in itertools.pairwise(ids_N):
            logits_1V, states = self.logits(values, np.array([before]), states)
            total += float(nats(logits_1V, np.array([target])).array[0])
        return total / (len(ids_N) - 1)

    def regret(self, params: Arrays, prompt_ids: np.ndarray, drawn_BN: np.ndarray) -> float:
        """How far a greedy sample is from the most probable characters.

        The network reads the prompt and the drawn characters. Each drawn character should have the largest logit. The result is
        the largest difference between the largest logit and the logit of the drawn character.
        """
        values, rows = as_values(params), len(drawn_BN)
        text_BN = np.concatenate([np.repeat(prompt_ids[None, :], rows, axis=0), drawn_BN], axis=1)
        states, largest = self.zero_state(rows), 0.0
        for position in range(text_BN.shape[1] - 1):
            logits_BV, states = self.logits(values, text_BN[:, position], states)
            if position >= len(prompt_ids) - 1:
                drawn_B = logits_BV.array[np.arange(rows), text_BN[:, position + 1]]
                largest = max(largest, float((logits_BV.array.max(-1) - drawn_B).max()))
        return largest


class Adam(NamedTuple):
    """Adam (Kingma & Ba 2015) with clipping by global norm and L2 regularisation of the matrices, which acts after clipping."""

    rate: float
    beta1: float
    beta2: float
    eps: float
    clip_norm: float
    weight_decay: float

    def updates(self, params: Arrays, history: Sequence[Arrays]) -> Arrays:
        """The change of each parameter by the latest step.

        Args:
          params: the parameters before the step.
          history: the gradients of all steps, after `regularised`.
        """
        steps = len(history)

        def update(name: str) -> np.ndarray:
            mean, square = 0.0, 0.0
            for gradient in history:
                mean = self.beta1 * mean + (1 - self.beta1) * gradient[name]
                square = self.beta2 * square + (1 - self.beta2) * gradient[name] ** 2
            return -self.rate * (mean / (1 - self.beta1**steps)) / (np.sqrt(square / (1 - self.beta2**steps)) + self.eps)

        return {name: update(name) for name in params}

    def regularised(self, params: Arrays, gradient: Arrays) -> Arrays:
        """The gradient after clipping and L2 regularisation."""
        norm = np.sqrt(sum((part**2).sum() for part in gradient.values()))
        scale = min(1.0, self.clip_norm / norm)
        return {
            name: part * scale + (self.weight_decay * params[name] if part.ndim > 1 else 0) for name, part in gradient.items()
        }


class Step(NamedTuple):
    """What a training step computes: the loss before the step, its gradient, the change of the parameters, and the states."""

    loss: float
    gradient: Arrays
    updates: Arrays
    states: list


def training_steps(network: Network, optimizer: Adam, params: Arrays, batches: Sequence[Any]) -> list[Step]:
    """Makes one training step for each batch."""
    states, history, steps = network.zero_state(len(batches[0].reset_B)), [], []
    for batch in batches:
        values = as_values(params)
        loss, states = network.loss(values, batch, states)
        gradient = dict(zip(values, gradients(loss, list(values.values())), strict=True))
        history.append(optimizer.regularised(params, gradient))
        updates = optimizer.updates(params, history)
        steps.append(Step(float(loss.array), gradient, updates, states))
        params = {name: array + updates[name] for name, array in params.items()}
    return steps


def as_values(params: Mapping[str, np.ndarray]) -> dict[str, Value]:
    return {name: Value(array) for name, array in params.items()}


def _of_layer(params: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _normalised(x: Value) -> Value:
    centred = x - x.mean()
    return centred / sqrt((centred * centred).mean() + EPSILON)


def _candidate(v: Value) -> Value:
    return where(v.array >= 0, v + 0.5, sigmoid(v))
