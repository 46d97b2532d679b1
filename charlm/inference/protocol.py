"""How a split is read where it is scored, and the name that a figure gets from it; no JAX in here."""

from collections.abc import Iterator
from typing import NamedTuple

from charlm.data.batches import Batch, Encoded, Framing, Order, evaluation_windows, in_pieces, once_through
from charlm.errors import UserError


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

    @property
    def rows_at_once(self) -> int:
        """How many rows a batch has."""
        return self.lanes if self.framing.kind == "stream" else self.rows

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
