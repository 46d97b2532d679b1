"""Scores a whole text: reads it in order, scores each character once, sums the nats and divides once at the end.

Letters: B batch (rows), T time, S scored positions, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm.data.batches import Batch, Encoded
from charlm.inference.protocol import Protocol
from charlm.models import objective
from charlm.models.stack import Functions

AHEAD = 4  # windows queued for the device: enough to keep it busy, few enough that a request to stop takes effect soon


def make_window(model: Functions) -> Callable:
    """The pure function (params, batch, carry) → ((nats_B, chars_B), carry), to be jitted."""

    def window(params, batch, carry):
        logits_BSV, carry = model.apply(params, batch, carry)
        # One sum for each row, so that devices need not communicate: two reductions over devices in one program can deadlock
        # where XLA:CPU has two threads (jaxlib 0.10.2).
        row_sums = jax.vmap(objective.nats_and_count)(logits_BSV[:, None], batch.targets_BS[:, None], batch.weights_BS[:, None])
        return row_sums, carry

    return window


def evaluator(model: Functions, mesh: Mesh | None = None, lengths: Sequence[int] = ()) -> Callable:
    """A function (params, encoded, protocol) → (nats, chars): the nats summed over all scored characters, and their number.

    Make it once and use it for every evaluation, so that its program is compiled once. It does not touch training state.
    The function takes a fourth argument: a function, called after each batch, that says whether to stop. If it says so, the
    result is None.

    Args:
      mesh: its devices share the rows of a batch if their number divides that of the rows.
      lengths: a stream's windows are padded to the next of these lengths, so that short texts share compiled programs. The
        result is the same to rounding.
    """
    window = jax.jit(make_window(model), donate_argnums=2)

    def evaluate(
        params: Any, encoded: Encoded, protocol: Protocol, asked_to_stop: Callable[[], bool] = lambda: False
    ) -> tuple[float, int] | None:
        place, params = _placement(mesh, protocol.rows_at_once, params)
        carry = place(model.zero_carry(protocol.rows_at_once))
        sums = []
        for batch in protocol.batches(encoded):
            row_sums, carry = window(params, place(_padded(batch, lengths)), carry)
            sums.append(row_sums)
            if len(sums) > AHEAD:
                jax.block_until_ready(sums[-AHEAD])
            if asked_to_stop():
                return None
        nats, chars = np.asarray(jax.device_get(sums), np.float64).sum((0, 2))
        return float(nats), int(chars)

    return evaluate


def _padded(batch: Batch, lengths: Sequence[int]) -> Batch:
    """The batch with positions of weight 0 after its last, up to the next of these lengths."""
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


def _placement(mesh: Mesh | None, rows: int, params: Any) -> tuple[Callable, Any]:
    """A function that puts arrays of rows on the devices, and the parameters on the same devices."""
    if mesh is None:
        return lambda arrays: arrays, params
    if rows % mesh.size == 0:
        replicated, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
        return functools.partial(jax.device_put, device=by_row), jax.device_put(params, replicated)
    first = mesh.devices.flat[0]
    return functools.partial(jax.device_put, device=first), on_one_device(params)


def on_one_device(replicated: Any) -> Any:
    """Arrays that every device has, as the copy on the first device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), replicated)
