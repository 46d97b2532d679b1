"""Perplexity of a whole split: in order, its characters scored once, nats summed and divided once at the end.

Letters: B batch (rows).
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm.data.batches import Encoded
from charlm.inference.protocol import Protocol
from charlm.models import objective
from charlm.models.stack import Functions

AHEAD = 4  # windows on their way to the device: enough that it never waits, few enough that a request to stop is soon heard


def make_window(model: Functions) -> Callable:
    """The pure function (params, batch, carry) → ((nats_B, chars_B), carry), to be jitted."""

    def window(params, batch, carry):
        logits_BSV, carry = model.apply(params, batch, carry)
        # Row by row, so that the devices have nothing to tell each other: two sums over devices in one program can wait for
        # each other for ever where XLA:CPU has two threads (jaxlib 0.10.2).
        row_sums = jax.vmap(objective.nats_and_count)(logits_BSV[:, None], batch.targets_BS[:, None], batch.weights_BS[:, None])
        return row_sums, carry

    return window


def evaluator(model: Functions, mesh: Mesh | None = None) -> Callable:
    """A function (params, encoded, protocol) → (nats, chars): the sum of nats over all scored characters, and their number.

    Compile once, use for every evaluation of a run. Training state is neither read nor written. The devices of a mesh share the
    rows where their number divides them. A fourth argument is a function that is asked again and again whether to stop; where
    it says so, the result is None.
    """
    window = jax.jit(make_window(model), donate_argnums=2)

    def evaluate(params, encoded: Encoded, protocol: Protocol, asked_to_stop=lambda: False) -> tuple[float, int] | None:
        sums, carry, place = [], None, None
        for batch in protocol.batches(encoded):
            if carry is None:
                rows = len(batch.reset_B)
                place, params = _placement(mesh, rows, params)
                carry = place(model.zero_carry(rows))
            row_sums, carry = window(params, place(batch), carry)
            sums.append(row_sums)
            if len(sums) > AHEAD:
                jax.block_until_ready(sums[-AHEAD])
            if asked_to_stop():
                return None
        nats, chars = np.asarray(jax.device_get(sums), np.float64).sum((0, 2))
        return float(nats), int(chars)

    return evaluate


def _placement(mesh: Mesh | None, rows: int, params) -> tuple[Callable, dict]:
    """A function that puts arrays of rows where they are to be, and the parameters where these read them."""
    if mesh is None:
        return lambda rows_of: rows_of, params
    if rows % mesh.size == 0:
        shared, of_rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
        return functools.partial(jax.device_put, device=of_rows), jax.device_put(params, shared)
    first = mesh.devices.flat[0]
    return functools.partial(jax.device_put, device=first), on_one_device(params)


def on_one_device(replicated):
    """The copy on the first device of arrays that all devices have."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), replicated)
