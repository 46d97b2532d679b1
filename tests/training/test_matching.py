"""Tests how `train.init_from` matches the symbols of any two vocabularies.

A plain loop over the symbols gives the expected parameters.
"""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies

from charlm.data.vocab import EOS, PAD, UNK, Vocab
from charlm.models import stack
from charlm.training import inheriting
from configs import base

SYMBOLS = strategies.text("abxÄé中\n", min_size=1, max_size=4)
VOCABS = strategies.builds(Vocab.of, SYMBOLS, strategies.booleans(), strategies.booleans())
BYTES = strategies.builds(Vocab.all_bytes, strategies.booleans())


def config_of(encoding):
    config = base.get_config()
    config.model.update({"input": encoding, "embedding": 3, "hidden": 4, "layers": 2})
    return config


@functools.cache
def shapes(encoding, size):
    return jax.eval_shape(stack.functions(config_of(encoding), size).init, jax.random.key(0))


@functools.cache
def axes(encoding):
    return inheriting._vocabulary_axes(config_of(encoding), 5)  # the axes do not depend on the size of the vocabulary


def parameters(encoding, vocab, seed):
    """Random arrays with the names and shapes of the model's parameters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes(encoding, len(vocab)))


def expected(old, fresh, old_vocab, new_vocab, encoding):
    """The expected parameters of the child, copied symbol by symbol. This function names all affected parameters itself."""
    child = jax.tree.map(np.array, old)
    child |= {name: fresh[name].copy() for name in ("head_kernel", "head_bias")}
    if encoding == "embedding":
        child["embedding"] = fresh["embedding"].copy()
        rows, old_rows = child["embedding"], old["embedding"]
    else:
        child["lstm_0"]["input_kernel"] = fresh["lstm_0"]["input_kernel"].copy()
        rows, old_rows = child["lstm_0"]["input_kernel"], old["lstm_0"]["input_kernel"]
    for place, symbol in enumerate(new_vocab.names):
        for old_place, old_symbol in enumerate(old_vocab.names):
            if symbol == old_symbol:
                rows[place] = old_rows[old_place]
                child["head_kernel"][:, place] = old["head_kernel"][:, old_place]
                child["head_bias"][place] = old["head_bias"][old_place]
    return child


@pytest.mark.parametrize("encoding", ["embedding", "onehot"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(old_vocab=VOCABS | BYTES, new_vocab=VOCABS | BYTES)
def test_each_symbol_keeps_its_rows_and_columns(encoding, old_vocab, new_vocab):
    old, fresh = parameters(encoding, old_vocab, 0), parameters(encoding, new_vocab, 1)
    matched = inheriting.matched(old, fresh, list(old_vocab.names), list(new_vocab.names), axes(encoding))
    jax.tree.map(np.testing.assert_array_equal, matched, expected(old, fresh, old_vocab, new_vocab, encoding))


def test_a_symbol_is_found_in_every_kind_of_vocabulary():
    """ASCII characters, the bytes below 0x80 and the special symbols have the same names in all vocabularies."""
    characters, numbers = Vocab.of("aé", unknown=True, documents=True), Vocab.all_bytes(documents=True)
    assert set(characters.names) & set(numbers.names) == {"a", PAD, EOS}
    assert set(Vocab.of("é<", unknown=True).names) & set(characters.names) == {"é", UNK}
