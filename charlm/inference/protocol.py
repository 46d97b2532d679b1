"""How a text is read when it is scored, and how that is named beside the figure. No JAX in here."""

from collections.abc import Iterator
from typing import NamedTuple

from charlm.data.batches import Batch, Encoded, Framing, Order, evaluation_windows, in_pieces, once_through
from charlm.errors import UserError


class Protocol(NamedTuple):
    """How a text is read. Two figures compare only if they have the same protocol.

    Attributes:
      framing: its `kind` says whether the state is carried (`stream`) or zero at the start of each chunk, window or document.
      rows: chunks, windows or documents in one batch; it changes the memory needed, not the result.
      length: characters of a window of a stream; it changes the memory needed, not the result.
      lanes, burn_in: of a stream, see `batches.evaluation_windows`. One lane is exact.
    """

    framing: Framing
    rows: int
    length: int
    lanes: int
    burn_in: int

    @classmethod
    def of(cls, config, framing: Framing) -> "Protocol":
        """The protocol of a config. `framing` is that of the training; `eval.framing` replaces its kind if it is set."""
        kind = config.eval.framing or framing.kind
        return cls(
            framing._replace(kind=kind, padding="masked"),
            config.eval.rows,
            config.eval.length,
            config.eval.lanes,
            config.eval.burn_in,
        )

    @classmethod
    def of_run(cls, config, framing: str | None = None, lanes: int = 1) -> "Protocol":
        """The protocol in which evaluate.py and `Model.score` read a text: that of the config, but with exact lanes by default.
        `framing` replaces its kind if it is given."""
        protocol = cls.of(config, Framing.of(config))._replace(lanes=lanes)
        return protocol._replace(framing=protocol.framing._replace(kind=framing or protocol.framing.kind))

    def batches(self, encoded: Encoded) -> Iterator[Batch]:
        """The text as batches, in order.

        Raises:
          UserError: the text does not fit the protocol.
        """
        if self.framing.kind == "stream":
            return evaluation_windows(encoded.ids_N, self.length, self.lanes, self.burn_in)
        return once_through(in_pieces(self.framing, encoded, self.rows, Order(shuffle=False)))

    @property
    def rows_at_once(self) -> int:
        """How many rows a batch has."""
        return self.lanes if self.framing.kind == "stream" else self.rows

    def check(self, encoded: Encoded) -> None:
        """Raises the UserError that `batches` would raise, without reading the whole text."""
        next(iter(self.batches(encoded)))

    def state(self) -> str:
        """In words, how the recurrent state is carried. Run directories store these words: changing them makes old figures
        incomparable with new ones."""
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
        """The protocol as logs and JSON store it beside a figure."""
        return {"corpus": corpus_sha256, "split": split, "state": self.state(), "chars": chars}
