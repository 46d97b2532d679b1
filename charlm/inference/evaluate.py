"""Scores a whole text in order. Each character is scored once. The functions return the sum of the nats and the number of
characters. To get the loss, the caller divides the sum by this number. The loss is therefore not an average of the losses of
windows.

The last letters of an array name are its axes: B rows of the batch, T time, S scored positions, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm.data.batches import Batch
from charlm.data.ids import Encoded
from charlm.inference.protocol import Protocol
from charlm.models import objective
from charlm.models.stack import Functions

AHEAD = 4  # batches queued for the device; with more, a request to stop would wait longer; with fewer, the device would be idle


def make_window(model: Functions) -> Callable:
    """Returns the pure function (params, batch, carry) → ((nats_B, chars_B), carry). The caller compiles it with `jax.jit`."""

    def window(params, batch, carry):
        logits_BSV, carry = model.apply(params, batch, carry)
        # Each row has its own sum, so devices need not communicate. Two reductions over devices in one program can deadlock if
        # XLA:CPU has two threads (jaxlib 0.10.2).
        row_sums = jax.vmap(objective.nats_and_count)(logits_BSV[:, None], batch.targets_BS[:, None], batch.weights_BS[:, None])
        return row_sums, carry

    return window


def evaluator(model: Functions, mesh: Mesh | None = None, lengths: Sequence[int] = ()) -> Callable:
    """Makes a function `evaluate`: (params, encoded, protocol) → (nats, chars).

    `nats` is the sum over all scored characters, and `chars` is the number of scored characters. Make the function once and use
    it for every evaluation, so that its program is compiled only once. `evaluate` does not change the state of a training.

    The optional fourth argument of `evaluate`, `asked_to_stop`, is a function that is called after each batch. If it returns
    True, `evaluate` stops and returns None.

    Args:
      model: the model as pure functions.
      mesh: the devices. If the number of rows of a batch is a multiple of the number of devices, the rows are divided among the
        devices. Otherwise the first device evaluates all rows.
      lengths: the batches of a stream are padded to the next larger of these lengths, so that texts of different
        lengths can use the same compiled program. Except for rounding, padding does not change the result.
    """
    window = jax.jit(make_window(model), donate_argnums=2)

    def evaluate(
        params: Any, encoded: Encoded, protocol: Protocol, asked_to_stop: Callable[[], bool] = lambda: False
    ) -> tuple[float, int] | None:
        place, params = placement(mesh, protocol.rows_at_once, params)
        carry = place(model.zero_carry(protocol.rows_at_once))
        batches: Iterable[Batch] = (_padded(batch, lengths) for batch in protocol.batches(encoded))
        # On a single device, the compiled function places the batches itself, which is faster.
        if mesh is not None and len(jax.tree.leaves(carry)[0].devices()) > 1:
            batches = map(place, batches)
        sums = summed(window, params, batches, carry, asked_to_stop)
        return None if sums is None else (float(sums[0]), int(sums[1]))

    return evaluate


def summed(
    window: Callable, params: Any, batches: Iterable[Batch], carry: Any, asked_to_stop: Callable[[], bool]
) -> np.ndarray | None:
    """The sums of the nats and of the characters over all batches and rows: float64 (2,).

    Returns None as soon as `asked_to_stop` returns True after a batch.

    Args:
      window: the compiled function that `make_window` describes. If it evaluates M models at once, it returns arrays (M, B),
        and the result has the shape (2, M).
      carry: the state before the first batch, which `window` may overwrite.
    """
    sums = []
    for batch in batches:
        row_sums, carry = window(params, batch, carry)
        sums.append(row_sums)
        if len(sums) > AHEAD:
            jax.block_until_ready(sums[-AHEAD])
        if asked_to_stop():
            return None
    return np.asarray(jax.device_get(sums), np.float64).sum((0, -1))


def _padded(batch: Batch, lengths: Sequence[int]) -> Batch:
    """The batch, padded with positions of weight 0 to the next larger of these lengths."""
    length = batch.inputs_BT.shape[1]
    missing = min((each for each in lengths if each >= length), default=length) - length
    if not missing:
        return batch
    padding = ((0, 0), (0, missing))
    return batch._replace(
        inputs_BT=np.pad(batch.inputs_BT, padding),
        targets_BS=np.pad(batch.targets_BS, padding),
        weights_BS=np.pad(batch.weights_BS, padding),
    )


def placement(mesh: Mesh | None, rows: int, params: Any) -> tuple[Callable, Any]:
    """Returns a function that puts arrays of rows on the devices, and the parameters, already put on the same devices."""
    if mesh is None:
        return lambda arrays: arrays, params
    if rows % mesh.size == 0:
        replicated, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
        return functools.partial(jax.device_put, device=by_row), jax.device_put(params, replicated)
    first = mesh.devices.flat[0]
    return functools.partial(jax.device_put, device=first), on_one_device(params)


def on_one_device(replicated: Any) -> Any:
    """Takes arrays that are replicated on all devices. Returns the copies on the first device of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), replicated)
