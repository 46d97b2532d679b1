"""Tests of `evaluate --per_line` and `--per_char`, which score single lines and single characters.

The tests also score texts with unknown characters, and sample documents from an empty prompt.
"""

import html
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
from conftest import TINY, slow
from test_evaluate import IDS, make_model, numpy_nats

import charlm
from charlm.config import load
from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.inference import inputs, per_char, pieces
from charlm.inference.model import Model
from charlm.models import stack
from charlm.rundir.run import Run
from configs import base

LINES = ["abcabc", "", "a", "ba", "cabb" * 20, "abc"]


@pytest.fixture(scope="module")
def functions():
    config = base.get_config()
    config.model.update({"hidden": 12, "layers": 2, "embedding": 5})
    return stack.functions(config, 9)


def trained_run(folder, text, **overrides) -> str:
    (folder / "text").write_text(text, encoding="utf-8")
    fixed = {"corpus.path": os.fspath(folder / "text"), "corpus.documents": "", "model.hidden": 8, "batch.size": 2}
    fixed |= {"batch.length": 8, "train.steps": 2, "sample.length": 0, "eval.rows": 4, "cache_dir": ""}
    charlm.train(load.load(TINY, fixed | overrides), folder / "run")
    return os.fspath(folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("pieces"), "abc\n" * 100)


@pytest.fixture(scope="module")
def run_with_unk(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("unk"), "abc\n" * 100, **{"vocab.unknown": True})


@pytest.fixture(scope="module")
def run_of_documents(tmp_path_factory):
    of_documents = {"corpus.documents": "lines", "batch.framing": "documents"}
    of_documents |= {"sample.length": 5, "model.layers": 2, "model.hidden": 12}  # the sizes that `numpy_nats` expects
    return trained_run(tmp_path_factory.mktemp("documents"), "abc\nabcabc\n" * 50, **of_documents)


@pytest.mark.parametrize("rows", [slow(1), 4, slow(64)])
def test_the_scores_of_each_piece_equal_numpy_in_float64(functions, rows):
    """A piece is a text that is scored on its own. The pieces are not sorted by length.

    Some pieces are shorter than a window, some have exactly the length of a window, and some are longer.
    """
    params, _ = make_model()
    lengths = [33, 0, 1, 2, 257, 32, 600, 5, 34]
    texts = [IDS[start : start + length] for start, length in enumerate(lengths)]
    found = dict(pieces.score(functions, params, texts, rows))
    assert sorted(found) == list(range(len(texts)))
    for index, ids in enumerate(texts):
        assert found[index].nats_M.shape == (max(0, len(ids) - 1),)
        assert found[index].nats_M.sum() == pytest.approx(numpy_nats(params, ids), abs=1e-3)
    with pytest.MonkeyPatch.context() as patch:  # pieces of more than 40 ids are long now
        patch.setattr(pieces, "ALIKE", 40)
        again = dict(pieces.score(functions, params, texts, rows))
    assert sorted(again) == sorted(found)
    for index, scores in again.items():
        np.testing.assert_allclose(scores.nats_M, found[index].nats_M, atol=1e-5)
    each = [numpy_nats(params, IDS[:count]) - numpy_nats(params, IDS[: count - 1]) for count in range(2, 34)]
    np.testing.assert_allclose(found[0].nats_M, each, atol=1e-5)


def test_the_likeliest_symbols_are_those_with_the_lowest_loss_in_numpy(functions):
    params, _ = make_model()
    ((_, scores),) = pieces.score(functions, params, [IDS[:4]], 1, alternatives=5)
    for count in range(1, 4):
        before = numpy_nats(params, IDS[:count])
        nats = [numpy_nats(params, [*IDS[:count], symbol]) - before for symbol in range(9)]
        order = np.argsort(nats)[:5]
        np.testing.assert_array_equal(scores.likeliest_MK[count - 1], order)
        np.testing.assert_allclose(scores.probabilities_MK[count - 1], np.exp(-np.array(nats)[order]), rtol=1e-4)
    # 99 alternatives are more than the vocabulary has symbols, so the probabilities of all symbols are returned.
    ((_, scores),) = pieces.score(functions, params, [IDS[:4]], 1, alternatives=99)
    np.testing.assert_allclose(scores.probabilities_MK.sum(1), 1, rtol=1e-5)


def test_a_line_is_scored_as_if_it_were_the_whole_text(run):
    model = charlm.load(run)
    scored = model.score_lines(LINES)
    assert [(each["line"], each["text"]) for each in scored] == list(enumerate(LINES, start=1))
    for line, each in zip(LINES, scored, strict=True):
        assert each["chars"] == max(0, len(line) - 1)
        if len(line) < 2:
            assert (each["nats"], each["bits_per_char"]) == (0, None)
        else:
            assert each["nats"] / each["chars"] == pytest.approx(model.score(line)["nats"], rel=1e-5)
            assert each["bits_per_char"] == pytest.approx(each["nats"] / each["chars"] / math.log(2))
    assert model.score_lines([]) == []


def without_start_symbol(model):
    """The same parameters as a model that was trained before `batch.start_symbol` existed."""
    config = model.config.copy_and_resolve_references()
    config.batch.start_symbol = False
    return Model(model.run, model.trained._replace(config=config))


@pytest.mark.parametrize("has_start", [True, slow(False)])
def test_the_end_of_a_document_is_scored_and_with_a_start_symbol_also_its_first_character(run_of_documents, has_start):
    model = charlm.load(run_of_documents)
    model, start = (model, ["<eos>"]) if has_start else (without_start_symbol(model), [])
    ids = model.vocab.names.index

    def by_hand(text):
        """The nats of a document, and the number of its scored symbols."""
        read = [*start, *text, "<eos>"]
        return numpy_nats(model.params, [ids(name) for name in read]), len(read) - 1

    texts = ["abc", "a", ""]
    scored = model.score_lines(texts)
    assert [each["chars"] for each in scored] == ([4, 2, 1] if has_start else [3, 1, 0])
    for text, each in zip(texts, scored, strict=True):
        assert (each["nats"], each["chars"]) == pytest.approx(by_hand(text), rel=1e-5)
    total, chars = np.sum([by_hand("abc"), by_hand("a")], axis=0)
    found = model.score(["abc", "a"])
    assert (found["chars"], found["bytes"]) == (chars, 4 if has_start else 2)
    assert found["perplexity"] == pytest.approx(math.exp(total / chars), rel=1e-5)
    state = ", read after <eos>" if has_start else ""
    assert found["protocol"]["state"] == f"zero at every document{state}, of which the first 8 chars"
    ((ids_N, scores),) = model.score_chars(["abc"], 2)
    assert model.vocab.decode(ids_N) == "abc<eos>"
    assert scores.nats_M.sum() == pytest.approx(scored[0]["nats"], rel=1e-5)
    _, *rows = table_of("".join(per_char.table([(ids_N, scores)], model.vocab)))
    assert [row[3] == "" for row in rows] == [not has_start, False, False, False]
    assert f"{3 + has_start} characters scored" in per_char.page([(ids_N, scores)], model.vocab, "run")
    surprisal = model.surprisal("abc")
    assert np.isnan(surprisal).tolist() == [not has_start, False, False]
    np.testing.assert_allclose(surprisal[not has_start :], scores.nats_M[:-1], rtol=1e-5)
    logits, (c_NH, _) = model.logits("abc"), model.states("abc")[0]
    assert logits.shape == (3, len(model.vocab))
    assert c_NH.shape == (3, 12)
    nats = np.log(np.exp(logits[-1]).sum()) - logits[-1, ids("<eos>")]
    assert nats == pytest.approx(scores.nats_M[-1], rel=1e-5)


def test_an_empty_prompt_draws_a_document_from_its_beginning(run_of_documents):
    model = charlm.load(run_of_documents)
    names = model.vocab.names
    nats = {name: numpy_nats(model.params, [names.index("<eos>"), names.index(name)]) for name in ("<eos>", *"abc")}
    drawn = model.sample("", length=1, temperature=1, num=600)
    assert set(drawn) <= {"", *"abc"}
    allowed = sum(math.exp(-each) for each in nats.values())  # <pad> is never drawn
    for name, each in nats.items():
        share = drawn.count("" if name == "<eos>" else name) / len(drawn)
        assert share == pytest.approx(math.exp(-each) / allowed, abs=0.08)  # 0.08 is four standard errors
    assert model.sample(None, num=3) == model.sample("", num=3)  # without a prompt, this model begins with an empty prompt
    (sample,) = Run(run_of_documents).workdir.glob("samples/*")
    assert set(sample.read_text()) <= set("abc")
    with pytest.raises(UserError, match=r"the prompt is empty, and this model has not learned how documents begin: .*=True"):
        without_start_symbol(model).sample("")


def table_of(text) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_the_table_has_the_surprisal_of_each_character(run):
    model, text = charlm.load(run), "ab\nca"
    scored = model.score_chars([text, "b"], per_char.ALTERNATIVES)
    header, *rows = table_of("".join(per_char.table(scored, model.vocab)))
    assert header[:7] == ["document", "position", "char", "nats", "bits", "likeliest_1", "p_1"]
    assert len(header) == 5 + 2 * 4  # the vocabulary has 4 symbols, fewer than ALTERNATIVES
    assert {len(row) for row in rows} == {len(header)}
    assert [row[:3] for row in rows] == [
        *(["1", str(position), char] for position, char in enumerate(["a", "b", r"\n", "c", "a"], start=1)),
        ["2", "1", "b"],
    ]
    assert set(rows[0][3:] + rows[5][3:]) == {""}
    logits = model.logits(text)
    for row, expected, logits_V in zip(rows[1:5], model.surprisal(text)[1:], logits[:-1], strict=True):
        assert float(row[3]) == pytest.approx(expected, abs=1e-5)
        assert float(row[4]) == pytest.approx(expected / math.log(2), abs=1e-5)
        assert row[5] == (r"\n", "a", "b", "c")[int(logits_V.argmax())]
        assert sum(map(float, row[6::2])) == pytest.approx(1, abs=1e-5)


SYMBOLS = "\t\n\r <\"'&\\x中\u200b_T"


def test_a_batch_of_pieces_ends_before_a_piece_that_would_need_much_padding():
    lengths = [1030, 7, 5, 2000, 9, 1_600_000, 2100]
    assert list(pieces._batches(lengths, 3)) == [[2, 1, 4], [0, 3], [6], [5]]
    assert list(pieces._batches(lengths, 2)) == [[2, 1], [4], [0, 3], [6], [5]]
    assert list(pieces._batches([2000, 2000, 4000, 4001], 8)) == [[0, 1, 2], [3]]
    assert list(pieces._batches([], 8)) == []


def test_characters_of_several_bytes_have_the_sum_of_the_surprisals_of_their_bytes():
    """The text has characters of one, two, three and four bytes. The surprisal of byte number k is k bits."""
    text = "aé中😀b"
    vocab = Vocab.all_bytes()
    ids_N = vocab.encode(text)
    count = len(ids_N) - 1
    nats_M = np.arange(1, count + 1, dtype=np.float32) * np.float32(math.log(2))
    scores = pieces.Scores(nats_M, np.stack([ids_N[1:], ids_N[1:]], axis=1), np.full((count, 2), 0.25, np.float32))
    found = list(per_char.chars(ids_N, scores, vocab))
    assert [char.name for char in found] == list(text)
    assert found[0].nats is None
    bits = [1 + 2, 3 + 4 + 5, 6 + 7 + 8 + 9, 10]
    assert [char.nats for char in found[1:]] == pytest.approx([number * math.log(2) for number in bits])
    assert [char.likeliest[0] for char in found[1:]] == [("<0xC3>", 0.25), ("<0xE4>", 0.25), ("<0xF0>", 0.25), ("b", 0.25)]
    rows = [line.split("\t") for line in "".join(per_char.table([(ids_N, scores)], vocab)).splitlines()[1:]]
    assert [(row[1], row[2], row[4]) for row in rows[:3]] == [("1", "a", ""), ("2", "é", "3.000000"), ("3", "中", "12.000000")]
    assert "10 bytes scored" in per_char.page([(ids_N, scores)], vocab, "run")


def hand_made() -> tuple[list[per_char.Scored], Vocab]:
    """Scores of a text that has every symbol once. Each scored symbol has a surprisal of 2 bits.

    The first alternative is the scored symbol itself. The second alternative is `<`.
    """
    vocab = Vocab.of(SYMBOLS, unknown=True)
    ids_N = np.concatenate([vocab.encode(SYMBOLS), [0]])
    count = len(ids_N) - 1
    likeliest = np.stack([ids_N[1:], np.full(count, vocab.encode("<")[0])], axis=1)
    probabilities = np.tile(np.array([0.25, 0.125], np.float32), (count, 1))
    return [(ids_N, pieces.Scores(np.full(count, 2 * math.log(2), np.float32), likeliest, probabilities))], vocab


def test_symbols_that_could_break_a_table_are_escaped():
    scored, vocab = hand_made()
    rows = [line.split("\t") for line in per_char.table(scored, vocab)]
    assert {len(row) for row in rows} == {5 + 2 * per_char.ALTERNATIVES, 5 + 2 * 2, 5 + 2 * per_char.ALTERNATIVES}
    assert [row[2] for row in rows[1:]] == [
        *(r"\t", r"\n", r"\r", " ", "<", '"', "'", "&", r"\\", "x", "中", r"\u200b", "_", "T", "<unk>")
    ]


def test_the_page_shows_symbols_as_text():
    scored, vocab = hand_made()
    page = per_char.page(scored, vocab, "__TEXT__ <b>")
    assert "<title>__TEXT__ &lt;b&gt;</title>" in page
    assert f"{len(SYMBOLS)} characters scored, 2.0000 bits per character" in page
    shown = re.findall(r'<i class="q(\d+)" data-t="([^"]*)">([^<]*)</i>', page.split("<pre>")[1])
    assert len(shown) == len(SYMBOLS)
    # A surprisal of 8 bits or more has the shade 20, so 2 bits have the shade 5.
    assert {shade for shade, _, _ in shown} == {"5"}
    expected = ["↵\n", r"\r", *" <\"'&\\", "x", "中", r"\u200b", "_", "T", "<unk>"]
    assert [html.unescape(text) for _, _, text in shown] == expected
    assert html.unescape(shown[3][1]).split("\n") == ["<   2.00 bits, 25.0%", "", "<   25.0%", "<   12.5%"]
    assert "http" not in page


def test_the_page_shows_the_likeliest_characters_at_the_mouse_pointer(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed: install Debian's package chromium")
    scored, vocab = hand_made()
    (tmp_path / "page.html").write_text(per_char.page(scored, vocab, "run"), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"file://{tmp_path / 'page.html'}")
        assert not page.locator("#tip").is_visible()
        page.locator("pre i", has_text="中").hover()
        assert page.locator("#tip").inner_text().split("\n") == ["中   2.00 bits, 25.0%", "", "中   25.0%", "<   12.5%"]
        browser.close()


def text_file(tmp_path, text) -> str:
    (tmp_path / "mine").write_text(text, encoding="utf-8")
    return os.fspath(tmp_path / "mine")


def test_unknown_characters_are_skipped_and_counted(run, tmp_path, capsys):
    file = text_file(tmp_path, "abXc\nYaX")
    for unknown in (None, "error"):
        with pytest.raises(UserError, match=r"has 'X' \(U\+0058\), 'Y' \(U\+0059\), outside .*: --unknown=skip drops such"):
            inputs.file_to_score(Run(run), file, unknown)
    with pytest.raises(UserError, match=r"--unknown=unk: the run's vocabulary has no <unk>"):
        inputs.file_to_score(Run(run), file, "unk")
    scored = inputs.file_to_score(Run(run), file, "skip")
    assert (scored.text, scored.skipped) == ("abc\na", 3)
    assert scored.sha256 == inputs.file_to_score(Run(run), text_file(tmp_path, "abc\na")).sha256
    assert "dropped 3 chars outside the vocabulary: 'X' (U+0058), 'Y' (U+0059)" in capsys.readouterr().err
    assert inputs.lines_of_file(Run(run), text_file(tmp_path, "aXb\n\nX\nc"), "skip") == ["ab", "", "", "c"]
    with pytest.raises(UserError, match="has 0 chars, but scoring needs at least 2"):
        inputs.file_to_score(Run(run), text_file(tmp_path, "XYZ"), "skip")


def test_unknown_characters_of_a_vocabulary_with_unk(run_with_unk, tmp_path, capsys):
    file = text_file(tmp_path, "abXc\nYaX")
    for unknown, text, skipped in ((None, "abXc\nYaX", 0), ("unk", "abXc\nYaX", 0), ("skip", "abc\na", 3)):
        scored = inputs.file_to_score(Run(run_with_unk), file, unknown)
        assert (scored.text, scored.skipped) == (text, skipped)
        assert bool(capsys.readouterr().err) == (unknown is not None)
    with pytest.raises(UserError, match=r"has 'X' \(U\+0058\)"):
        inputs.file_to_score(Run(run_with_unk), file, "error")
    scores = charlm.load(run_with_unk).score_lines(["abXc", "abc", "XY"])
    assert [score.get("unknown") for score in scores] == [1, None, 2]


def test_a_text_in_another_encoding_than_the_corpus_can_be_scored(run, tmp_path):
    file = tmp_path / "mine"
    file.write_bytes("abc\u00e9".encode("utf-16-le"))
    assert inputs.file_to_score(Run(run), str(file), "skip", "utf-16-le").text == "abc"
    file.write_bytes(b"abc\xe9 caf\xe9 ")
    with pytest.raises(UserError, match=r"is not UTF-8: .*: set --encoding"):
        inputs.file_to_score(Run(run), str(file), "skip")
    with pytest.raises(UserError, match=r"--encoding=latin-99: must be a text encoding"):
        inputs.file_to_score(Run(run), str(file), "skip", "latin-99")
    file.write_text("abc\u00e9", encoding="utf-8")
    with pytest.raises(UserError, match=r"--unknown=skip drops such characters\. The file looks like UTF-8: set --encoding"):
        inputs.file_to_score(Run(run), str(file), None, "latin-1")
    with pytest.raises(UserError, match=r"--unknown=skip drops such characters\.$"):
        inputs.file_to_score(Run(run), str(file))


def test_unknown_characters_of_documents_are_skipped(run_of_documents, tmp_path):
    file = text_file(tmp_path, "aXb\nXX\nc")
    scored = inputs.file_to_score(Run(run_of_documents), file, "skip")
    assert (scored.text, scored.skipped, scored.empty) == (["ab", "c"], 3, 1)
    assert inputs.lines_of_file(Run(run_of_documents), file, "skip") == ["ab", "", "c"]


def test_evaluate_reads_standard_input(script, run):
    lines = script("evaluate", f"--workdir={run}", "--text=-", "--per_line", "--unknown=skip", input="abcXabc\n\na\n").stdout
    found = [json.loads(line) for line in lines.splitlines()]
    assert [(each["line"], each["text"], each["chars"]) for each in found] == [(1, "abcabc", 5), (2, "", 0), (3, "a", 0)]
    model = charlm.load(run)
    assert found[0]["nats"] / 5 == pytest.approx(model.score("abcabc")["nats"], rel=1e-5)
    result = json.loads(script("evaluate", f"--workdir={run}", "--text=-", "--unknown=skip", input="abcXabc").stdout)
    assert (result["nats"], result["skipped"]) == (pytest.approx(found[0]["nats"] / 5, rel=1e-5), 1)
    text = script("evaluate", f"--workdir={run}", "--text=-", "--per_char=-", input="ab\nc").stdout
    assert [row[2] for row in table_of(text)[1:]] == ["a", "b", r"\n", "c"]


def test_evaluate_writes_a_page(script, run, tmp_path):
    file = tmp_path / "page.html"
    assert script("evaluate", f"--workdir={run}", f"--per_char={file}").stdout == f"wrote {file}.\n"
    length = Run(run).corpus()["splits"]["validation"]
    assert file.read_text(encoding="utf-8").split("<pre>")[1].count("<i ") == length


def test_evaluate_refuses_flags_that_do_not_fit_together(script, run, tmp_path):
    for flags, message in (
        (["--per_line", "--per_char=-"], "--per_line and --per_char are given together"),
        (["--per_line", "--framing=stream"], "--framing=stream has no effect with --per_line"),
        (["--per_line", "--length=9"], "--length=9 has no effect with --per_line"),
        (["--per_char=-", "--lanes=2"], "--lanes=2 has no effect with --per_char"),
        (["--unknown=skip"], "--unknown is given without --text"),
        ([f"--per_char={tmp_path / 'a.txt'}"], "the name must end in .tsv or .html"),
        ([f"--per_char={tmp_path / 'missing' / 'a.tsv'}"], "a.tsv can't be written"),
        (["--text=-", "--per_line"], "--text=- has no lines"),
    ):
        assert message in script.fails("evaluate", f"--workdir={run}", *flags, input="")
    assert list(tmp_path.iterdir()) == []
