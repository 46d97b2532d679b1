"""Defines the protocol of a score: how a text is read when it is scored, and how logs describe this.

This module must not import JAX.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from charlm.data.batches import Batch, evaluation_batches
from charlm.data.framing import Framing
from charlm.data.ids import Encoded
from charlm.data.vocab import UNK, Vocab
from charlm.errors import UserError


class Counts(NamedTuple):
    """How many bytes and `<unk>` of a text a protocol scores.

    Attributes:
      size: the number of bytes of the scored characters in UTF-8.
      unknown: the number of scored characters that are `<unk>`.
    """

    size: int
    unknown: int


class Protocol(NamedTuple):
    """How a text is read when it is scored. Two scores are comparable only if they were measured under the same protocol.

    Attributes:
      framing: how the text is arranged into rows. With the kind `stream`, the recurrent state is carried through the text. With
        any other kind, the state is zero at the start of each chunk, window or document.
      rows: the number of chunks, windows or documents in one batch. It changes how much memory is needed, but not the result.
      length: the number of characters of each lane of a stream in one batch. It changes how much memory is needed, but not the
        result.
      lanes: the number of parts of the text that are read in parallel. Used only for a stream. With one lane, the state is
        carried through the whole text. With more lanes, the result is an approximation of the result with one lane.
      burn_in: the number of characters that each lane except the first reads before it scores. Used only for a stream. See
        `batches.evaluation_windows`.
    """

    framing: Framing
    rows: int
    length: int
    lanes: int
    burn_in: int

    @classmethod
    def of(cls, config: ConfigDict, framing: Framing) -> "Protocol":
        """The protocol under which a run with this config is evaluated during training.

        Args:
          framing: the framing of the training. If the config key `eval.framing` is set, its value replaces the kind of this
            framing.
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
    def of_run(cls, config: ConfigDict, framing: str | None = None, lanes: int = 1, length: int | None = None) -> "Protocol":
        """The protocol that evaluate.py and `Model.score` use. It is the protocol of the config, except for these arguments.

        Args:
          framing: the kind of framing. None means the kind in the protocol of the config.
          lanes: the number of lanes. The value of `eval.lanes` is not used.
          length: the number of characters of a chunk or window. None means `batch.length`.

        Raises:
          UserError: the length is not a positive integer, or the framing is neither `chunks` nor `windows`.
        """
        protocol = cls.of(config, Framing.of(config))._replace(lanes=lanes)
        arranged = protocol.framing._replace(kind=framing or protocol.framing.kind)
        if length is not None:
            if not isinstance(length, int) or length < 1:
                raise UserError(f"--length={length}: must be an integer, 1 or more.")
            if arranged.kind not in ("chunks", "windows"):
                raise UserError(
                    f"--length={length} has no effect with the framing {arranged.kind!r}: "
                    "add --framing=chunks or --framing=windows, or leave it out."
                )
            arranged = arranged._replace(length=length)
        return protocol._replace(framing=arranged)

    def batches(self, encoded: Encoded) -> Iterator[Batch]:
        """The batches for scoring a text, in the order of the text.

        Raises:
          UserError: the text does not fit the protocol.
        """
        return evaluation_batches(self.framing, encoded, self.rows, self.length, self.lanes, self.burn_in)

    def counts(self, encoded: Encoded, vocab: Vocab) -> Counts:
        """Counts the scored bytes and the scored `<unk>` of a text. `encoded.sizes_N` must not be None.

        The sizes are arranged into batches in the same way as the ids. Therefore, exactly the sizes of the scored characters
        are summed, whatever the framing.

        Raises:
          UserError: the text does not fit the protocol.
        """
        assert encoded.sizes_N is not None
        size, unknown, unknown_id = 0.0, 0, vocab.id_of(UNK)
        sizes = self.batches(encoded._replace(ids_N=encoded.sizes_N))
        for batch, batch_of_sizes in zip(self.batches(encoded), sizes, strict=True):
            size += float(np.sum(batch_of_sizes.targets_BS * batch_of_sizes.weights_BS, dtype=np.float64))
            if unknown_id is not None:
                unknown += int(np.count_nonzero((batch.targets_BS == unknown_id) & (batch.weights_BS > 0)))
        return Counts(round(size), unknown)

    @property
    def rows_at_once(self) -> int:
        """The number of rows of a batch."""
        return self.lanes if self.framing.carries_state else self.rows

    def check(self, encoded: Encoded) -> None:
        """Raises the UserError that `batches` would raise, without reading the whole text."""
        next(iter(self.batches(encoded)))

    def named(self, corpus_sha256: str, split: str, chars: int) -> dict[str, Any]:
        """The protocol as a dict. Logs and JSON output store this dict together with the score.

        Args:
          corpus_sha256: the hash of the corpus or of the text.
          split: the name of the split or of the text.
          chars: the number of characters that were scored.
        """
        state = self.framing.state_in_words(self.lanes, self.burn_in)
        return {"corpus": corpus_sha256, "split": split, "state": state, "chars": chars}
