"""Defines how a text is read for scoring, and how logs describe this. This module must not import JAX."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from charlm.data.batches import Batch, Encoded, Framing, evaluation_batches


class Protocol(NamedTuple):
    """How a text is read for scoring. Two figures are comparable only if they have the same protocol.

    Attributes:
      framing: its `kind` says whether the state is carried (`stream`) or zero at the start of each chunk, window or document.
      rows: the number of chunks, windows or documents in one batch. It affects the memory, not the result.
      length: the number of characters that each lane of a stream reads in one batch. It affects the memory, not the result.
      lanes: used only for a stream; see `batches.evaluation_windows`. With `lanes=1` the state is carried through the
        whole text; more lanes approximate this result.
      burn_in: used only for a stream; see `batches.evaluation_windows`.
    """

    framing: Framing
    rows: int
    length: int
    lanes: int
    burn_in: int

    @classmethod
    def of(cls, config: ConfigDict, framing: Framing) -> "Protocol":
        """The protocol of a config.

        Args:
          framing: the framing of the training. If `eval.framing` is set, it replaces the kind of this framing.
        """
        kind = config.eval.framing or framing.kind
        return cls(
            framing._replace(kind=kind, padding="masked"),
            config.eval.rows,
            config.eval.length,
            config.eval.lanes,
            config.eval.burn_in,
        )

    @classmethod
    def of_run(cls, config: ConfigDict, framing: str | None = None, lanes: int = 1) -> "Protocol":
        """The protocol of evaluate.py and of `Model.score`. It is the protocol of the config, but with one lane by default.

        Args:
          framing: if given, replaces the kind of the protocol's framing.
          lanes: replaces the number of lanes.
        """
        protocol = cls.of(config, Framing.of(config))._replace(lanes=lanes)
        return protocol._replace(framing=protocol.framing._replace(kind=framing or protocol.framing.kind))

    def batches(self, encoded: Encoded) -> Iterator[Batch]:
        """The text as batches, in order.

        Raises:
          UserError: the text does not fit the protocol.
        """
        return evaluation_batches(self.framing, encoded, self.rows, self.length, self.lanes, self.burn_in)

    @property
    def rows_at_once(self) -> int:
        """The number of rows of a batch."""
        return self.lanes if self.framing.carries_state else self.rows

    def check(self, encoded: Encoded) -> None:
        """Raises the UserError that `batches` would raise, without reading the whole text."""
        next(iter(self.batches(encoded)))

    def named(self, corpus_sha256: str, split: str, chars: int) -> dict[str, Any]:
        """The protocol as a dict, which logs and JSON output store with a figure."""
        state = self.framing.state_in_words(self.lanes, self.burn_in)
        return {"corpus": corpus_sha256, "split": split, "state": state, "chars": chars}
