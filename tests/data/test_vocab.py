"""Tests the vocabulary: encoding, decoding, unknown symbols, and the JSON form that vocab.json holds."""

import json

import numpy as np
import pytest

from charlm.data.vocab import ADVICE, BLOCK, Vocab, counts_of, is_odd, symbols_of
from charlm.errors import UserError


def test_ids_follow_the_sorted_order_of_the_symbols():
    text = "to be, or not\n\U0001f600 é"
    vocab = Vocab.of(text, unknown=False)
    ids = {symbol: index for index, symbol in enumerate(sorted(set(text)))}
    assert vocab.encode(text).tolist() == [ids[symbol] for symbol in text]
    assert vocab.decode(vocab.encode(text)) == text


@pytest.mark.parametrize(("symbols", "dtype"), [(200, np.uint8), (300, np.uint16), (70_000, np.uint32)])
def test_ids_have_the_smallest_sufficient_unsigned_type(symbols, dtype):
    text = "".join(chr(0x10000 + k) for k in range(symbols))
    vocab = Vocab.of(text, unknown=False)
    assert vocab.encode(text).dtype == dtype
    assert vocab.encode(text).tolist() == list(range(symbols))


def test_symbols_are_found_in_a_text_longer_than_one_block():
    assert symbols_of("b" * BLOCK + "a\n") == "\nab"


def test_unknown_symbols_are_refused_with_an_error_that_lists_the_symbols():
    vocab = Vocab.of("abc", unknown=False)
    with pytest.raises(
        UserError,
        match=r"the test split has symbols that are not in the vocabulary: 'x' \(U\+0078\), 'é' \(U\+00E9\); train with",
    ):
        vocab.encode("axbéx", "the test split", ADVICE)
    with pytest.raises(UserError, match=r"^the text has symbols that are not in the vocabulary: 'x' \(U\+0078\)\.$"):
        vocab.encode("ax")


def test_unknown_symbols_become_unk_and_unk_is_never_sampled():
    vocab = Vocab.of("abc", unknown=True)
    assert vocab.encode("axc").tolist() == [1, 0, 3]
    assert vocab.decode([1, 0, 3]) == "a<unk>c"
    assert vocab.never_drawn() == (0,)
    assert len(vocab) == 4


@pytest.mark.parametrize("unknown", [False, True])
def test_a_vocabulary_saved_as_json_is_loaded_unchanged(unknown):
    vocab = Vocab.of("a\u2028\"'\\\n\x00é", unknown)
    assert Vocab.from_dict(json.loads(json.dumps(vocab.to_dict()))) == vocab


@pytest.mark.parametrize(
    "fields", [{}, {"symbols": 3}, {"symbols": "ba", "specials": []}, {"symbols": "", "specials": []}, {"symbols": "ab"}]
)
def test_fields_that_are_not_a_vocabulary_are_refused(fields):
    with pytest.raises(
        ValueError, match=r"^it has no symbols$|^it has no list of specials$|^its symbols are not sorted and distinct$"
    ):
        Vocab.from_dict(fields)


def test_odd_symbols_are_those_that_a_reader_does_not_see_or_know():
    odd = "\0\x07\r\x7f\x85\xa0\xad\u200b\u200e\u2028\ufeff\ufffd\ue000\uffff\U000e0001"
    assert all(map(is_odd, odd))
    ordinary = "aZ0 .\n\té\u0301\u0915\u093f\u0e33\u3000\u4e2d\U0001f600\u0645\u20ac"  # with combining marks of three scripts
    assert not any(map(is_odd, ordinary))


def test_symbols_are_counted(monkeypatch):
    text = "a\0b\0\U0001f600a" * 7 + "c"
    for block in (BLOCK, 3, 1):
        monkeypatch.setattr("charlm.data.vocab.BLOCK", block)
        assert counts_of(text, "\0\U0001f600cx") == {symbol: text.count(symbol) for symbol in "\0\U0001f600cx"}
    assert counts_of(text, "") == {}
