"""Tests `scripts/inspect.py`, which looks inside a model: its numbers against NumPy, and its page in a real browser."""

import base64
import json
import math
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY
from test_evaluate import IDS, make_model

import charlm
from charlm.config import load
from charlm.data.batches import Batch
from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.inference import activations, findings, looking, looking_plots, restore
from charlm.inference.inputs import ScoredText
from charlm.models import stack
from charlm.rundir.run import Run
from configs import base

FIRST = (0, 300)  # in the text of `watched`, the state is zero before the symbols at these positions


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_lstm(params, ids, first):
    """(layer, name) → the values (P, H) of an LSTM with two layers, and the log-probabilities, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    values = {(layer, name): [] for layer in range(2) for name in "hciofg"}
    log_p = []
    for position, id_ in enumerate(ids):
        if position in first:
            state = [(np.zeros(12), np.zeros(12)) for _ in range(2)]
        x = params["embedding"][id_]
        for layer in range(2):
            weights, (c, h) = params[f"lstm_{layer}"], state[layer]
            i, f, g, o = np.split(x @ weights["input_kernel"] + h @ weights["recurrent_kernel"] + weights["bias"], 4)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            c = f * c + i * g
            x = o * np.tanh(c)
            state[layer] = (c, x)
            for name, value in zip("hciofg", (x, c, i, o, f, g), strict=True):
                values[layer, name].append(value)
        logits = x @ params["head_kernel"] + params["head_bias"]
        log_p.append(logits - np.log(np.exp(logits).sum()))
    return {key: np.array(value) for key, value in values.items()}, np.array(log_p)


@pytest.fixture(scope="module")
def watched():
    """(reading, ids, properties, values and log-probabilities by NumPy) of a text that is longer than a window.

    The state is zero before the symbols at the positions FIRST.
    """
    params, _ = make_model()
    params = jax.tree.map(lambda leaf: leaf * 4, params)  # so that some gates are saturated
    config = base.get_config()
    config.model.update({"hidden": 12, "layers": 2, "embedding": 5})
    ids = IDS[: activations.WINDOW + 101]
    first_P = np.isin(np.arange(len(ids)), FIRST)
    properties_PK = np.random.default_rng(3).normal(size=(len(ids), 3))
    reading = activations.Reader(stack.functions(config, 9), params).read(ids, first_P, properties_PK, 550)
    return reading, ids, properties_PK, *numpy_lstm(params, ids, FIRST)


def test_each_series_equals_numpy_in_float64(watched):
    reading, _, _, values, _ = watched
    assert [(each.layer, each.name) for each in reading.series] == [(layer, name) for layer in range(2) for name in "hcfiog"]
    assert [each.name for each in reading.series if each.is_gate] == list("fiofio")
    assert reading.values_PJ.shape == (550, 2 * 6 * 12)
    for each in reading.series:
        np.testing.assert_allclose(
            reading.values_PJ[:, each.columns], values[each.layer, each.name][:550], rtol=1e-5, atol=1e-4
        )  # float32 rounds at each of 550 steps, and not in the same way on all processors


def test_the_surprisal_and_the_likeliest_symbols_equal_numpy(watched):
    reading, ids, _, _, log_p = watched
    expected = np.concatenate([[np.nan], -log_p[np.arange(len(ids) - 1), ids[1:]]])
    expected[list(FIRST)] = np.nan
    np.testing.assert_allclose(reading.nats_P, expected, atol=1e-4)
    order = np.argsort(-log_p, axis=1)[:, :5]
    np.testing.assert_array_equal(reading.likeliest_PA, order)
    np.testing.assert_allclose(reading.probabilities_PA, np.exp(np.take_along_axis(log_p, order, 1)), atol=1e-5)


def test_the_correlations_of_each_half_equal_numpy(watched):
    reading, ids, properties_PK, values, _ = watched
    all_values = np.concatenate([values[each.layer, each.name] for each in reading.series], axis=1)
    middle = len(ids) // 2
    assert middle not in (0, activations.WINDOW)
    for half, part in zip(reading.halves, (slice(0, middle), slice(middle, None)), strict=True):
        expected = np.corrcoef(properties_PK[part].T, all_values[part].T)[:3, 3:]
        np.testing.assert_allclose(activations.correlations(half), expected, atol=1e-4)


def test_the_share_of_saturated_gates_is_counted(watched):
    reading, ids, _, values, _ = watched
    for each in reading.series:
        if each.is_gate:
            gate = values[each.layer, each.name]
            left, right = reading.saturated[:, each.columns]
            assert 0 < left.max() < 1
            # A value may be so close to a limit that rounding decides: one symbol of the text may be counted differently.
            np.testing.assert_allclose(left, (gate < 0.1).mean(0), atol=1.1 / len(ids))
            np.testing.assert_allclose(right, (gate > 0.9).mean(0), atol=1.1 / len(ids))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ({"cell": ("lstm", "gru"), "residual": True, "tie": True, "zoneout_hidden": 0.3}, ["hcfiog", "hrzn"]),
        ({"cell": "slstm", "layers": 1}, ["hcmnfioz"]),
        ({"cell": "rnn", "layers": 1}, ["h"]),
    ],
)
def test_other_cells_and_layers_are_read_as_the_model_reads_them(model, names):
    """The surprisal equals the loss that `apply` of the model gives, and the state after `apply` equals the last values."""
    config = base.get_config()
    config.model.update({"hidden": 6, "layers": 2, "embedding": 6} | model)
    functions = stack.functions(config, 9)
    params = jax.tree.map(lambda leaf: leaf + 0.3, jax.jit(functions.init)(jax.random.key(2)))
    ids = IDS[:40].astype(np.int32)
    reading = activations.Reader(functions, params).read(ids, np.arange(40) == 0, np.zeros((40, 1)), 40)
    found = {layer: "".join(each.name for each in reading.series if each.layer == layer) for layer in range(len(names))}
    assert list(found.values()) == names
    batch = Batch(ids[None], ids[None], jnp.ones((1, 40)), jnp.ones(1, bool))
    logits_BSV, carry = functions.apply(params, batch, functions.zero_carry(1))
    log_p = jax.nn.log_softmax(logits_BSV[0, :-1])
    np.testing.assert_allclose(reading.nats_P[1:], -log_p[np.arange(39), ids[1:]], atol=1e-4)
    for layer, state in enumerate(carry):
        values = [reading.values_PJ[-1, each.columns] for each in reading.series if each.layer == layer]
        for leaf in jax.tree.leaves(state):
            assert any(value.shape == leaf[0].shape and np.allclose(value, leaf[0], atol=1e-4) for value in values)


def test_a_unit_that_never_changes_has_no_correlation():
    values = np.stack([np.full(50, 0.1, np.float32), np.arange(50, dtype=np.float32)], axis=1)
    sums = activations._added(activations._no_moments(2, 2), np.stack([np.arange(50), np.full(50, 3.0)], axis=1), values)
    np.testing.assert_array_equal(np.isnan(activations.correlations(sums)), [[True, False], [True, True]])


# The values of each property after each symbol of TEXT_BY_HAND. Each value is one digit. The + signs separate the lines.
TEXT_BY_HAND = 'a("B c")\n  d\n\nE[\n'
BY_HAND = {
    "inside quotes": "00111100" + "0" + "0000" + "0" + "000",
    "position in line": "12345678" + "0" + "1230" + "0" + "120",
    "indentation": "00000000" + "0" + "1220" + "0" + "000",
    "inside brackets": "01111110" + "0" + "0000" + "0" + "011",
    "upper case": "00010000" + "0" + "0000" + "0" + "100",
    "after a blank line": "00000000" + "0" + "0000" + "1" + "110",
}


def test_the_properties_of_a_text_equal_those_by_hand():
    text = TEXT_BY_HAND
    first_P = np.arange(len(text)) == 0
    found = findings.properties(text, first_P)
    for column, name in enumerate(findings.PROPERTIES):
        shown = "".join(str(int(value)) for value in found[:, column])
        assert shown == BY_HAND[name], name


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("“a ”b«c»", "inside quotes", "11100110"),
        ('"a\n\nb"', "inside quotes", "1110" + "01"),  # a blank line ends a quote that was never closed
        ("([)]x)", "inside brackets", "111110"),  # a bracket that closes nothing has no effect
        ("({\n\n}", "inside brackets", "11110"),  # a blank line ends ( but not {
        ("a\n \nb", "after a blank line", "00011"),  # a line of spaces is blank
        ("\t a b", "indentation", "12222"),
    ],
)
def test_the_properties_of_difficult_texts(text, name, expected):
    found = findings.properties(text, np.arange(len(text)) == 0)[:, list(findings.PROPERTIES).index(name)]
    assert "".join(str(int(value)) for value in found) == expected


def test_a_document_starts_outside_quotes_and_brackets_and_at_the_beginning_of_a_line():
    text = '("Ab' + "c d"
    found = findings.properties(text, np.isin(np.arange(len(text)), (0, 4)))
    np.testing.assert_array_equal(found[4:], findings.properties("c d", np.array([True, False, False])))


QUOTES_AND_BRACKETS = 'Some "words in quotes" (and some words in brackets) here.\nNext "line" has (more) "of" it\n' * 40
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>&amp;\x01\x7f\u2028\u202e\t\\中"


def hand_made_params(functions, vocab, seed=0):
    """The parameters of an LSTM with one-hot inputs, of which two units are made by hand. The others are random.

    Unit 3 is positive inside quotes. At a double quote, it forgets its c. The new c is about 1 if the last h was 0 or negative,
    and about -1 if the last h was positive. At all other symbols, unit 3 keeps its c. The c of unit 5 becomes 1 at ( and -1 at
    ). At all other symbols, unit 5 keeps its c.
    """
    params = jax.tree.map(lambda leaf: np.array(leaf), functions.init(jax.random.key(seed)))
    layer = params["lstm_0"]
    hidden = layer["recurrent_kernel"].shape[0]
    (quote,), (opening, closing) = vocab.encode('"'), vocab.encode("()")
    for unit, writes in ((3, [quote]), (5, [opening, closing])):
        gates = np.arange(4) * hidden + unit
        for name in ("input_kernel", "recurrent_kernel"):
            layer[name][:, gates] = 0
        i, f, g, _ = gates
        layer["bias"][gates] = -20, 20, 0, 20
        layer["input_kernel"][writes, i] = 40
        layer["input_kernel"][writes, f] = -40
        if unit == 3:
            layer["bias"][g] = 2
            layer["recurrent_kernel"][3, g] = -20
        else:
            layer["input_kernel"][[opening, closing], g] = 20, -20
    return jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose vocabulary has HTML characters and control characters. The validation split is the end of the corpus."""
    folder = tmp_path_factory.mktemp("looking")
    (folder / "text").write_bytes((HOSTILE + "\n" + QUOTES_AND_BRACKETS).encode())
    fixed = {"corpus.path": os.fspath(folder / "text"), "model.hidden": 8, "model.input": "onehot", "batch.size": 2}
    fixed |= {"batch.length": 8, "train.steps": 1, "sample.length": 0, "cache_dir": "", "vocab.source": "corpus"}
    charlm.train(load.load(TINY, fixed), folder / "run")
    return Run(folder / "run")


@pytest.fixture(scope="module")
def hand_made(run):
    trained = restore.load(run.workdir, "latest")
    return trained._replace(params=hand_made_params(trained.functions, trained.vocab))


@pytest.fixture(scope="module")
def looked(run, hand_made):
    text = ScoredText(HOSTILE + "\n" + QUOTES_AND_BRACKETS[:3000], "", "text", "--text=mine")
    return looking.look(run, hand_made, text, None, 10_000, 1001, [1, 3])


def test_the_units_that_were_made_to_track_quotes_and_brackets_are_found_first(looked):
    for name, unit in (("inside quotes", 3), ("inside brackets", 5)):
        best, second, _ = looked.found[name]
        assert best.unit == unit
        assert best.correlation > 0.99
        assert abs(second.correlation) < 0.9
    assert len({(each.series.layer, each.unit) for each in looked.found["upper case"]}) == findings.BEST
    assert looked.found["after a blank line"] == []  # the second half has no blank line


def test_units_are_searched_in_the_split_if_the_text_is_shorter(run, hand_made):
    short = ScoredText('a "b" (c)', "", "text", "--text=mine")
    split = ScoredText(QUOTES_AND_BRACKETS, "", "validation", "the validation split")
    found = looking.look(run, hand_made, short, split, 2000, None, [])
    assert found.searched == ("the validation split", 2000)
    assert found.found["inside quotes"][0].unit == 3
    assert len(found.reading.values_PJ) == len("a (b) (c)")
    alone = looking.look(run, hand_made, short, None, 2000, None, [])
    assert alone.searched == ("--text=mine", 9)
    assert set(map(len, alone.found.values())) == {0}  # 9 symbols are too few
    json.dumps(looking.content(alone), allow_nan=False)


def test_the_data_of_the_page_equals_what_was_computed(looked):
    content = looking.content(looked)
    assert len(content["ids"]) == len(content["likeliest"]) == len(content["signals"][0]["values"]) == 1001
    assert any("first 1,001 symbols" in note for note in content["notes"])
    for series, packed in zip(looked.reading.series, content["series"], strict=True):
        values = looked.reading.values_PJ[:, series.columns]
        codes = np.frombuffer(base64.b64decode(packed["data"]), np.uint8).reshape(series.units, 1002)[:, :1001].T
        if series.is_gate:
            np.testing.assert_allclose(codes / 255, values, atol=0.51 / 255)
        else:
            scale = np.array(packed["scale"])[None, :]
            assert (np.abs((codes - 128.0) / 127 * scale - values) <= 0.51 / 127 * scale + 1e-3).all()
    assert content["ngrams"][1]["nats"] == pytest.approx(np.nanmean(looked.ngrams[3]))
    nats = looked.reading.nats_P[1:]
    assert content["nats"] == pytest.approx(nats.mean())
    a = looked.vocab.encode("a")[0]
    row = next(row for row in content["by_symbol"] if row["id"] == a)
    of_a = nats[looked.text.ids_P[1:] == a]
    assert (row["count"], row["nats"]) == (len(of_a), pytest.approx(of_a.mean()))
    assert row["share"] == pytest.approx(of_a.sum() / nats.sum())
    assert sum(row["share"] for row in content["by_symbol"]) == pytest.approx(1)


def test_the_loss_by_distance_is_that_of_pieces_that_start_from_the_zero_state(looked, hand_made):
    """Each piece is read alone, and the losses of all pieces at the same distance are averaged."""
    reader = activations.Reader(hand_made.functions, hand_made.params)
    ids, by_distance = looked.text.ids_P, {}
    for start in range(0, len(ids), looking.PIECE):
        piece = ids[start : start + looking.PIECE]
        reading = reader.read(piece, np.arange(len(piece)) == 0, np.zeros((len(piece), 1)), 0)
        for distance, nats in enumerate(reading.nats_P[1:], start=1):
            by_distance.setdefault(distance, []).append(nats)
    rows = looked.by_distance
    assert [(row["first"], row["last"]) for row in rows] == [(2**n, 2 ** (n + 1) - 1) for n in range(9)]
    for row in rows:
        nats = [each for distance in range(row["first"], row["last"] + 1) for each in by_distance[distance]]
        assert (row["count"], row["nats"]) == (len(nats), pytest.approx(np.mean(nats), rel=1e-4))


def test_documents_start_from_the_zero_state_and_after_the_start_symbol(hand_made):
    vocab = Vocab.of('ab"', unknown=False, documents=True)
    config = hand_made.config.copy_and_resolve_references()
    config.batch.update({"framing": "documents", "padding": "masked", "start_symbol": False})
    documents = ScoredText(["ab", "b", "abab"], "", "text", "the text")
    names = lambda text: [vocab.names[index] for index in text.ids_P]  # noqa: E731
    text = looking.Text.of(documents, hand_made._replace(vocab=vocab, config=config), 100)
    assert names(text) == ["a", "b", "<eos>", "b", "<eos>", "a", "b", "a", "b", "<eos>"]
    assert np.flatnonzero(text.first_P).tolist() == [0, 3, 5]
    config.batch.start_symbol = True
    text = looking.Text.of(documents, hand_made._replace(vocab=vocab, config=config), 9)
    assert names(text) == ["<eos>", "a", "b", "<eos>", "<eos>", "b", "<eos>", "<eos>", "a"]
    assert np.flatnonzero(text.first_P).tolist() == [0, 4, 7]
    assert [len(piece) for piece in text.pieces()] == [4, 3, 2]
    ngrams = looking._ngrams(vocab.encode("ababab"), text, hand_made._replace(vocab=vocab, config=config), [1])
    assert np.isnan(ngrams[1]).tolist() == text.first_P.tolist()
    # Order 1 by hand: 6 symbols of 2 kinds, and 5 symbols in the vocabulary.
    assert ngrams[1][1] == pytest.approx(-math.log((3 + 2 / 5) / (6 + 2)))
    assert ngrams[1][3] == pytest.approx(-math.log((0 + 2 / 5) / (6 + 2)))


def test_a_character_of_several_bytes_is_shown_at_its_last_byte():
    vocab = Vocab.all_bytes(documents=True)
    ids = np.concatenate([vocab.encode("aé中"), [vocab.id_of("<eos>")]])
    assert looking._characters(ids, vocab) == [None, "·", "é", "·", "·", "中", "<eos>"]


def test_a_model_of_windows_and_a_page_that_is_too_large_are_explained(run, hand_made):
    config = hand_made.config.copy_and_resolve_references()
    config.batch.framing = "windows"
    text = ScoredText("Some words", "", "text", "--text=mine")
    windows = looking.look(run, hand_made._replace(config=config), text, None, 100, None, [])
    assert any("trained on windows of 8 symbols" in note for note in windows.notes)
    with pytest.raises(UserError, match=r"--chars=99999999: the page would have [\d,]+ MB, .* give at most [\d,]+\."):
        looking.look(run, hand_made, text, None, 100, 99_999_999, [])


def test_plots_are_png_files(looked):
    images = looking_plots.draw(looked)
    assert set(images) == {"saturation.png", "units.png", "loss_by_symbol.png", "loss_by_distance.png"}
    for image in images.values():
        assert image.startswith(b"\x89PNG")
        assert len(image) > 10_000


def test_the_page_shows_units_and_the_likeliest_symbols(looked, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed: install Debian's package chromium")
    (tmp_path / "page.html").write_text(looking.page(looked._replace(title=HOSTILE)), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        messages = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: messages.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(f"file://{tmp_path / 'page.html'}")
        _check_page(page, looked)
        assert page.evaluate("window.hacked") is None
        assert [message for message in messages if message != "data:,"] == []
        browser.close()


def _check_page(page, looked):
    symbol = page.locator("#text i")
    colour = lambda position: symbol.nth(position).evaluate("node => node.style.backgroundColor")  # noqa: E731
    assert symbol.count() == 1001
    shown = page.locator("#text").text_content()
    assert shown.startswith(HOSTILE[:-7].replace("\x01", r"\u{1}").replace("\x7f", r"\u{7f}"))
    assert r"\u{2028}\u{202e}" in shown
    inside, outside = (HOSTILE + "\n" + QUOTES_AND_BRACKETS).index("words"), len(HOSTILE) + 1  # in quotes, and before them

    # Choose a unit by the controls: h of unit 3 is positive inside quotes, and about 0 before the first quote.
    page.locator("#source").select_option(label="layer 0: h")
    page.locator("#unit").fill("3")
    values = looked.reading.values_PJ[:, looked.reading.series[0].columns][:, 3]
    assert values[inside] > 0.7 > 0.1 > abs(values[outside])
    assert "--high" in colour(inside)
    assert float(colour(inside).split(",")[1].rstrip(") ")) > 0.7
    assert float(colour(outside).split(",")[1].rstrip(") ")) < 0.1
    before = colour(inside)
    page.locator("#unit").press("ArrowUp")
    assert page.locator("#unit").input_value() == "4"
    assert colour(inside) != before
    page.locator("#unit").fill("99999")
    assert page.locator("#unit").input_value() == "7"

    # Choose a unit that was found.
    page.locator("#found button", has_text="layer 0").first.click()
    assert page.locator("#unit").input_value() == "3"
    assert page.locator("#found button[aria-pressed=true]").count() == 1
    page.locator("#source").select_option(label="surprisal")
    assert not page.locator("#unit").is_visible()

    # The mouse pointer and the arrow keys show the likeliest next symbols.
    symbol.nth(inside).hover()
    bits = looked.reading.nats_P[inside] / math.log(2)
    assert f"surprisal {bits:.2f} bits" in page.locator("#details").inner_text()
    for _ in range(2):
        label = looked.vocab.names[looked.reading.likeliest_PA[inside][0]]
        expected = f"{100 * looked.reading.probabilities_PA[inside][0]:.1f} %"
        cells = page.locator("#next tr").first.locator("td").all_inner_texts()
        if label.isalpha():
            assert cells[0] == label
        assert float(cells[1].split()[0]) == pytest.approx(float(expected.split()[0]), abs=0.11)
        assert page.locator("#next tr").count() == activations.ALTERNATIVES
        page.locator("#text").press("ArrowRight")
        inside += 1
        assert f"at position {inside + 1}" in page.locator("#details").inner_text().replace(",", "")
    page.locator("#text").press("Home")
    assert "the model does not predict this symbol" in page.locator("#details").inner_text()
    assert page.locator("#saturation tr").count() == 1 + 3
    assert page.locator("#scatter circle").count() == 3 * 8
    assert page.locator("#symbols tr").count() == 1 + len(looked.by_symbol)
    assert page.locator("#totals").inner_text().count("n-gram") == 2


def test_the_program_writes_the_page_and_the_plots(run, script, tmp_path):
    (tmp_path / "mine").write_text('He said "yes" (twice).', encoding="utf-8")
    flags = [f"--workdir={run.workdir}", f"--text={tmp_path / 'mine'}", "--unknown=skip", "--ngram=2..3"]
    result = script("inspect", *flags, f"--plots={tmp_path / 'plots'}")
    assert f"wrote {run.workdir / 'inspect.html'}." in result.stdout
    assert "searching units in the validation split" in result.stderr
    page = (run.workdir / "inspect.html").read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [each["order"] for each in data["ngrams"]] == [2, 3]
    assert "https://" not in page
    assert len(list((tmp_path / "plots").iterdir())) == 4


def test_a_mistake_is_one_sentence_and_nothing_is_written(run, script, tmp_path):
    (tmp_path / "one").write_text("S", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    at, to = f"--workdir={run.workdir}", f"--html={tmp_path / 'page.html'}"
    for flags, message in (
        ([at, to, "--ngram=0"], "--ngram=0: must be an order from 1 to"),
        ([at, to, "--chars=0"], "--chars=0: must be 1 or more."),
        ([f"--workdir={tmp_path / 'empty'}", to], "status.json does not exist: --workdir must be the directory of a run."),
        ([at, to, f"--text={tmp_path / 'one'}"], "has 1 char, but scoring needs at least 2."),
        ([at, to, f"--plots={tmp_path / 'no' / 'plots'}"], "can't be written: give a folder"),
    ):
        assert message in script.fails("inspect", *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "one"]


def test_pythons_own_module_inspect_is_found_although_a_script_has_the_same_name():
    code = "import inspect, dataclasses; print(inspect.signature(dataclasses.field), inspect.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith("(*, default=")
    assert str(ROOT) not in found.stdout
