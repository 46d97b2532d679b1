"""Tests of stop texts and of interactive sessions.

A sample that ends at a stop text is compared with a search in the whole text. A session is compared with one long sample.
"""

import os
import re

import jax
import pytest
from conftest import ROOT, TINY
from hypothesis import given
from hypothesis import strategies as st

import charlm
from charlm.config import load
from charlm.errors import UserError
from charlm.inference import inputs, sample
from charlm.inference.model import SHORT
from charlm.inference.session import Session

LETTERS = st.text("ab", max_size=12)


def cut(text: str, stop: list[str]) -> str:
    """The part of `text` before the stop text that ends first.

    If several stop texts end at the same place, the part before the longest of these stop texts is returned.
    """
    for end in range(1, len(text) + 1):
        found = [len(each) for each in stop if text[:end].endswith(each)]
        if found:
            return text[: end - max(found)]
    return text


@given(pieces=st.lists(st.tuples(LETTERS, LETTERS), max_size=6), stop=st.lists(st.text("ab", min_size=1, max_size=4)))
def test_each_text_ends_before_the_first_stop_text_for_pieces_of_any_size(pieces, stop):
    ended = {}
    shown = list(sample.until_stop((list(piece) for piece in pieces), stop, ended))
    for row in (0, 1):
        whole = "".join(piece[row] for piece in pieces)
        assert "".join(texts[row] for texts in shown) == cut(whole, stop)
        if row in ended:
            assert whole.startswith(cut(whole, stop) + ended[row])
        else:
            assert cut(whole, stop) == whole


def test_a_text_is_shown_at_once_except_for_the_beginning_of_a_stop_text():
    assert list(sample.until_stop(iter([["on"], ["e\n"], ["two"], ["\n"]]), ["\n\n"], {})) == [
        ["on"],
        ["e"],
        ["\ntwo"],
        [""],
        ["\n"],
    ]


def trained(folder, text, **overrides):
    (folder / "text").write_text(text, encoding="utf-8")
    overrides |= {"corpus.path": os.fspath(folder / "text"), "model.hidden": 16, "sample.length": 0}
    charlm.train(load.load(os.fspath(ROOT / TINY), {"train.steps": 60, **overrides}), folder / "run")
    return charlm.load(folder / "run")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # The text has no backslash. Its lines differ, so that a greedy sample does not repeat itself at once.
    text = "".join(f"{number} {number * number}, so on.\n" for number in range(900))
    return trained(tmp_path_factory.mktemp("session"), text)


def session_of(model, length, temperature=0.0, window=None, stop=(), top_k=0):
    def check(prompt):
        return inputs.typed_prompt(prompt, model.config, model.vocab)

    return Session(model, check, length, temperature, 0, top_k=top_k, top_p=1.0, window=window, stop=stop)


def said(session, line):
    return "".join(session.answer(line))


@pytest.mark.parametrize("window", [0, 7])
def test_a_continued_text_equals_one_long_sample(model, window):
    length = 2 * SHORT + 9
    session = session_of(model, length, window=window)
    text = said(session, "12 ")
    for _ in range(3):
        text += said(session, "/continue")
    assert text == model.sample("12 ", length=4 * length, temperature=0, window=window)
    text += said(session, "/continue 77 ")
    assert text.endswith(model.sample(text[: 3 + 4 * length] + "77 ", length=length, temperature=0, window=window)[-length:])
    # A new prompt begins a new text.
    assert said(session, "12 ") == model.sample("12 ", length=length, temperature=0, window=window)


@pytest.mark.slow
def test_a_session_with_a_model_of_bytes_leaves_out_a_character_that_is_not_complete(tmp_path):
    model = trained(tmp_path, "äöü €\n" * 900, **{"vocab.source": "bytes", "train.steps": 250})
    session = session_of(model, 6 * SHORT)
    text = said(session, "ä") + said(session, "/continue") + said(session, "/continue")
    assert set(text) == set("äöü €\n")
    assert model.sample("ä", length=18 * SHORT, temperature=0).startswith(text)
    assert len(text.encode()) > 18 * SHORT - 9  # each of the three turns may have lost a part of a character


def test_a_text_continued_in_short_turns_equals_one_long_sample(model):
    session = session_of(model, 5)
    text = said(session, "3 ") + "".join(said(session, "/continue") for _ in range(2 * SHORT // 5))
    assert text == model.sample("3 ", length=len(text) - 2, temperature=0)


def test_a_session_compiles_the_sampler_once(model, caplog):
    session = session_of(model, 2 * SHORT, temperature=0.7, top_k=5)  # no other test has compiled this sampler
    with jax.log_compiles():
        for line in ("1", "12 144", "/continue", "/continue 5"):
            assert said(session, line)
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    assert len([message for message in compiled if "carried_chunk" in message]) == 1


def test_turns_are_drawn_with_different_noise(model):
    session = session_of(model, 40, temperature=1.0)
    assert said(session, "1") != said(session, "1")


def test_a_session_goes_on_after_a_stop_text(model):
    whole = model.sample("12", length=200, temperature=0)
    session = session_of(model, 60, stop=["so"])
    first = said(session, "12")
    assert first == whole[: whole.index("so", 2)]
    again = said(session, "/continue")
    assert again.startswith("so")
    assert whole.startswith(first + again)


def test_a_session_reads_escapes_and_refuses_wrong_lines(model):
    session = session_of(model, 4)
    with pytest.raises(UserError, match="there is no text to continue"):
        session.answer("/continue")
    assert said(session, r"1\n2").startswith("1\n2")  # the vocabulary has no backslash
    with pytest.raises(UserError, match="outside the run's vocabulary"):
        session.answer("Q")
    with pytest.raises(UserError, match="the prompt is empty"):
        session.answer("")
    assert len(said(session, "/continue")) == 4  # after the refused lines, the last text can still be continued


def test_a_session_begins_a_document_with_an_empty_line_and_continues_it(tmp_path):
    stories = "".join(" ".join(f"{number} and {number}" for number in range(start, start + 40)) + "\n" for start in range(90))
    of_documents = {"corpus.documents": "lines", "batch.framing": "documents", "batch.length": 500}
    model = trained(tmp_path, stories, **of_documents)
    length = SHORT - 1  # with the start symbol, the first text fills one window
    session = session_of(model, length)
    text = said(session, "")
    assert len(text) == length
    text += "".join(said(session, "/continue") for _ in range(2))
    assert text == model.sample("", length=3 * length, temperature=0)
    session = session_of(model, 400, temperature=1.0, stop=["8"])
    assert said(session, "") != said(session, "")


def test_the_stop_text_of_an_ended_text_is_kept_while_other_texts_are_drawn(model):
    ended = {}
    pieces = model.draw("1", 400, 1.0, 0, num=8, top_k=0, top_p=1.0, window=0, stop=["so"], ended=ended)
    list(pieces)
    assert set(ended.values()) == {"so"}
    assert len(ended) > 1


def test_stop_texts_in_python(model):
    whole = model.sample("1", length=100, temperature=0)
    assert model.sample("1", length=100, temperature=0, stop="so") == whole[: whole.index("so")]
    assert model.sample("1", length=100, temperature=0, stop=["so", ","]) == whole[: whole.index(",")]
    with pytest.raises(UserError, match=re.escape("--stop='Q' has 'Q' (U+0051)")):
        model.sample("1", stop=["Q"])
    with pytest.raises(UserError, match="--stop=: must be a text"):
        model.sample("1", stop="")
    with pytest.raises(UserError, match=re.escape(r"write $'A:\nB' in the shell")):
        model.sample("1", stop=r"1\n")
