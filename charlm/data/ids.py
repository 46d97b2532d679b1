"""Encodes a split of the corpus as ids.

Letters in the names of arrays: N characters of the split, D documents, V symbols of the vocabulary.
"""

from typing import NamedTuple

import numpy as np

from charlm.data.longtext import Ids, LongText, Translated
from charlm.data.vocab import EOS, UNK, Vocab, utf8_sizes


class Encoded(NamedTuple):
    """A split of the corpus, encoded as ids.

    Attributes:
      ids_N: the ids of the running text, or the ids of all documents in one array, in which `<eos>` follows each document.
      starts_D1: int64 (D + 1,), the position in `ids_N` at which each document starts. The last item is N. None for a running
        text.
      name: the name of the split in error messages.
      sizes_N: the number of bytes of each character in UTF-8. `<eos>` has no bytes. `<unk>` has the bytes of the character that
        it stands for. None if the bytes are not needed.
    """

    ids_N: Ids
    starts_D1: np.ndarray | None = None
    name: str = "the text"
    sizes_N: Ids | None = None

    @property
    def lengths_D(self) -> np.ndarray:
        """The number of characters of each document, without its `<eos>`. A running text has no lengths."""
        assert self.starts_D1 is not None
        return np.diff(self.starts_D1) - 1


def encode(vocab: Vocab, split: str | LongText | list[str], where: str, advice: str = "") -> Encoded:
    """Encodes a running text, or a list of documents, as ids.

    Args:
      vocab: the vocabulary. For documents, it must have `<eos>`.
      split: the text or the documents.
      where: the name of the split in error messages.
      advice: what the user can do about unknown symbols, for error messages.

    Raises:
      UserError: the split has characters outside the vocabulary, and the vocabulary has no `<unk>`.
    """
    if isinstance(split, LongText):
        return Encoded(split.encode(vocab, where, advice), None, where, split.sizes_N)
    has_unknown = UNK in vocab.specials  # the id of `<unk>` does not tell how many bytes a character has
    if isinstance(split, str):
        ids_N = vocab.encode(split, where, advice)
        return Encoded(ids_N, None, where, utf8_sizes(split) if has_unknown else Translated(ids_N, vocab.sizes_V))
    starts_D1 = np.cumsum([0, *(vocab.length_of(document) + 1 for document in split)])
    texts_N = vocab.encode("".join(split), where, advice)
    # Fill the array with <eos>. Then write the characters at all positions except the last position of each document.
    ids_N = np.full(starts_D1[-1], vocab.id_of(EOS), texts_N.dtype)
    is_text_N = np.ones(len(ids_N), bool)
    is_text_N[starts_D1[1:] - 1] = False
    ids_N[is_text_N] = texts_N
    if not has_unknown:
        return Encoded(ids_N, starts_D1, where, Translated(ids_N, vocab.sizes_V))
    sizes_N = np.zeros(len(ids_N), np.uint8)
    sizes_N[is_text_N] = utf8_sizes("".join(split))
    return Encoded(ids_N, starts_D1, where, sizes_N)
