"""The settings of a framing, and descriptions of them in words. `charlm.data.batches` makes the batches.

In names of arrays, D is the number of documents.
"""

import bisect
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from charlm.data.vocab import EOS, Vocab
from charlm.errors import UserError
from charlm.progress import counted


class Framing(NamedTuple):
    """How a text is arranged into rows.

    `kind` is the value of the config key `batch.framing`, and `rows` is the value of `batch.size`. Each of the other fields is
    the value of the key `batch.NAME`, where NAME is the name of the field.
    """

    kind: str
    rows: int
    length: int
    shift: bool
    stride: int
    shuffle: bool
    bucket: int
    padding: str
    start_symbol: bool = False

    @classmethod
    def of(cls, config: ConfigDict) -> "Framing":
        return cls(
            kind=config.batch.framing,
            rows=config.batch.size,
            length=config.batch.length,
            shift=config.batch.shift,
            stride=config.batch.stride,
            shuffle=config.batch.shuffle,
            bucket=config.batch.bucket,
            padding=config.batch.padding,
            # With batch.padding=counted, the padding comes before the text, and the model predicts the first character from it.
            # A start symbol is then not needed.
            start_symbol=config.batch.start_symbol and config.batch.padding == "masked",
        )

    @property
    def carries_state(self) -> bool:
        """Whether each batch of an epoch, except the first, starts from the final state of the previous batch."""
        return self.kind == "stream"

    @property
    def is_of_documents(self) -> bool:
        """Whether each row is a document. The batches of documents have different lengths."""
        return self.kind == "documents"

    def state_in_words(self, lanes: int = 1, burn_in: int = 0) -> str:
        """Says in words from which recurrent state each row starts when a split is scored with this framing.

        Run directories store these words with each result, as a part of the description of how the result was measured (the
        protocol). Results are compared only if their protocols are equal, so a change of these words makes old and new results
        incomparable.

        Args:
          lanes: see `evaluation_windows`. Only a stream has lanes.
          burn_in: see `evaluation_windows`. Only a stream has a burn-in.
        """
        match self.kind:
            case "stream" if lanes == 1:
                return "carried"
            case "stream":
                return f"carried in {lanes} lanes, {burn_in} chars of burn-in"
            case "chunks":
                return f"zero at every chunk of {self.length}"
            case "windows":
                return f"zero at every window of {self.length}, one every {self.stride}, its next char scored"
            case "documents":
                start = ", read after <eos>" if self.start_symbol else ""
                return f"zero at every document{start}, of which the first {self.length} chars"
        raise UserError(f"the framing {self.kind!r} is unknown: it must be stream, chunks, windows or documents.")

    @property
    def window(self) -> int:
        """The number of characters that the model reads, from the zero state, before each prediction. 0 if this number varies.

        The number is fixed only for the framing `windows`. The sampler uses it for models that were trained with this framing:
        before the sampler draws a character, the model reads this many characters.
        """
        return self.length if self.kind == "windows" else 0


def start_ids(config: ConfigDict, vocab: Vocab) -> list[int]:
    """The ids that the model reads before the first character of a text: `<eos>` or nothing.

    The model reads `<eos>` if its corpus has documents and `batch.start_symbol` is set. The model then knows how texts begin.
    """
    end = vocab.id_of(EOS)
    return [] if end is None or not Framing.of(config).start_symbol else [end]


def cut_in_words(lengths_D: np.ndarray, limit: int) -> str:
    """Says how much of the text is lost because `batch.length` cuts the documents. Empty if no document is cut.

    Args:
      lengths_D: the number of characters of each document.
      limit: the value of `batch.length`.
    """

    def lost(length: int) -> float:
        """The fraction of the characters that the model does not read with this `batch.length`."""
        return float(np.maximum(lengths_D - length, 0).sum() / lengths_D.sum())

    cut, longest = int((lengths_D > limit).sum()), int(lengths_D.max(initial=0))
    if not cut:
        return ""
    # If one document is very long, keeping all text needs a very large batch.length. The message then also names the smallest
    # batch.length that keeps 99% of the text.
    most = bisect.bisect_left(range(longest), True, key=lambda length: lost(length) <= 0.01)
    nearly = f", and batch.length={most} keeps 99%" if limit < most < longest // 2 else ""
    return (
        f"batch.length={limit} cuts {cut:,} of {counted(len(lengths_D), 'document')}, and {_percent(lost(limit))} of the text "
        f"is lost: batch.length={longest} keeps all of it{nearly}."
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
