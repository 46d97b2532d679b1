"""Defines the protocol, which says how a text is read for scoring. This module must not import JAX."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from charlm.data.batches import Batch, Encoded, Framing, evaluation_batches


class Protocol(NamedTuple):
    """How a text is read for scoring. Two losses are comparable only if they were measured by the same protocol.

    Attributes:
      framing: how the text is arranged into rows. If `framing.kind` is `stream`, the state is carried through the text. For
        all other kinds, the state is zero at the start of each chunk, window or document.
      rows: the number of chunks, windows or documents in one batch. This number affects the memory use, not the result.
      length: the number of characters that each lane of a stream reads in one batch. This number affects the memory use, not
        the result.
      lanes: the number of pieces (lanes) of a stream that are read in parallel. With `lanes=1` the state is carried through
        the whole text. With more lanes, the result approximates the result of one lane. See `batches.evaluation_windows`.
      burn_in: the number of characters that each lane except the first reads before it scores. Used only for a stream.
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
          framing: the framing of the training. If `eval.framing` is set, it replaces `framing.kind`.
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
        """The protocol of evaluate.py and of `Model.score`: the protocol of the run's config, but with the given `lanes`.

        Args:
          framing: the kind of the framing. None takes the kind from the config.
          lanes: the number of lanes. `eval.lanes` of the config is not used.
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
        """The protocol as a dict. Logs and JSON output store this dict with each loss that was measured by the protocol.

        Args:
          corpus_sha256: the hash of the corpus, or of the text if the text is not a split of the corpus.
          split: the name of the split or text.
          chars: the number of characters that were scored.
        """
        state = self.framing.state_in_words(self.lanes, self.burn_in)
        return {"corpus": corpus_sha256, "split": split, "state": state, "chars": chars}
