"""Perplexity of a whole split: in order, its characters scored once, nats summed and divided once at the end.

Letters: B batch (rows).
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm import objective
from charlm.batches import Batch, Encoded, Framing, Order, evaluation_windows, in_pieces, once_through
from charlm.errors import UserError
from charlm.model import Functions

AHEAD = 4  # windows on their way to the device: enough that it never waits, few enough that a request to stop is soon heard


class Protocol(NamedTuple):
    """How a split is read; two figures compare only where all of this is the same.

    Attributes:
      framing: its `kind` says whether the state is carried (`stream`) or begins at zero with each chunk, window or document.
      rows: chunks, windows or documents side by side, which changes the memory needed and not the result.
      length: chars of a window of a stream, likewise.
      lanes, burn_in: of a stream, see `batches.evaluation_windows`; one lane is exact.
    """

    framing: Framing
    rows: int
    length: int
    lanes: int
    burn_in: int

    @classmethod
    def of(cls, config, framing: Framing) -> "Protocol":
        """The protocol of a config; `framing` is that of its training, which holds where nothing else is said."""
        kind = config.eval.framing or framing.kind
        return cls(
            framing._replace(kind=kind, padding="masked"),
            config.eval.rows,
            config.eval.length,
            config.eval.lanes,
            config.eval.burn_in,
        )

    def batches(self, encoded: Encoded) -> Iterator[Batch]:
        """The split as batches, in order.

        Raises:
          UserError: it does not fit the protocol.
        """
        if self.framing.kind == "stream":
            return evaluation_windows(encoded.ids_N, self.length, self.lanes, self.burn_in)
        return once_through(in_pieces(self.framing, encoded, self.rows, Order(shuffle=False)))

    def check(self, encoded: Encoded) -> None:
        """Raises the UserError that `batches` would, without the work."""
        next(iter(self.batches(encoded)))

    def state(self) -> str:
        """How the LSTM state is carried, in words."""
        match self.framing.kind:
            case "stream" if self.lanes == 1:
                return "carried"
            case "stream":
                return f"carried in {self.lanes} lanes, {self.burn_in} chars of burn-in"
            case "chunks":
                return f"zero at every chunk of {self.framing.length}"
            case "windows":
                return f"zero at every window of {self.framing.length}, one every {self.framing.stride}, its next char scored"
            case "documents":
                return f"zero at every document, of which the first {self.framing.length} chars"
        raise UserError(f"eval.framing={self.framing.kind!r} is not known.")

    def named(self, corpus_sha256: str, split: str, chars: int) -> dict:
        """The protocol as it stands in logs beside each figure."""
        return {"corpus": corpus_sha256, "split": split, "state": self.state(), "chars": chars}


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
