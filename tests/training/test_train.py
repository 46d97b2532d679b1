"""Tests the training loop: learning, logging, checkpoints, signals and divergence."""

import contextlib
import dataclasses
import functools
import json
import os
import pty
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY, assert_same, final_params, slow
from faults.checks import read_rows
from faults.runs import as_flags

from charlm.config import load
from charlm.data.framing import Framing
from charlm.errors import Failure, UserError
from charlm.inference import evaluate
from charlm.models import stack
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training import feeding, judging, opening, setup, signals, state, train


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_loss_falls_below_the_entropy_of_the_symbol_frequencies(small, corpus_file, tmp_path, capsys):
    overrides = small | {"train.steps": 120, "model.hidden": 32, "train.log_every": 30, "train.eval_every": 60}
    overrides |= {"train.checkpoint_every": 0}
    assert train.train(load.load(TINY, overrides), tmp_path / "run") == 0
    rows = read_rows(tmp_path / "run")
    _, counts = np.unique(list(corpus_file.read_text()), return_counts=True)
    frequencies = counts / counts.sum()
    entropy = -(frequencies * np.log(frequencies)).sum()
    validation = [row for row in rows if row["split"] == "validation"]
    assert validation[-1]["nats"] < 0.9 * entropy
    assert [row["step"] for row in rows if row["split"] == "train"] == [30, 60, 90, 120]
    for row in rows:
        assert row["perplexity"] == pytest.approx(np.exp(row["nats"]))
        assert row["bits"] == pytest.approx(row["nats"] / np.log(2))
        assert row["chars"] == {"train": 30 * 4 * 16, "train_mean": 60 * 4 * 16, "validation": 1199}[row["split"]]
        assert row["epoch"] == pytest.approx(row["step"] / (10_799 // 64))
    # A train_mean row holds the average training loss since the previous evaluation. Each train row holds the average over 30
    # steps, so each train_mean row is the average of two train rows.
    losses = [row["nats"] for row in rows if row["split"] == "train"]
    means = [row["nats"] for row in rows if row["split"] == "train_mean"]
    assert means == pytest.approx([np.mean(losses[:2]), np.mean(losses[2:])], rel=1e-6)
    assert validation[-1]["protocol"] == {
        "corpus": Run(tmp_path / "run").corpus()["sha256"],
        "split": "validation",
        "state": "carried",
        "chars": 1199,
    }
    status = Run(tmp_path / "run").status()
    assert (status["state"], status["step"], status["best"]["nats"]) == ("done", 120, validation[-1]["nats"])
    samples = sorted((tmp_path / "run" / "samples").iterdir())
    assert [file.name for file in samples] == ["00000060.txt", "00000120.txt"]
    assert all(len(file.read_text()) == 1 + 20 for file in samples)
    # A second call of train.train prints that the run is done, and changes no file.
    capsys.readouterr()
    before = (tmp_path / "run" / "metrics.jsonl").stat()
    assert train.train(load.load(TINY, overrides), tmp_path / "run") == 0
    assert "is done at step 120: best validation" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").stat() == before


def test_evaluation_does_not_change_training(small, tmp_path):
    small = small | {"model.dropout": 0.3, "sample.length": 5}
    train.train(load.load(TINY, small | {"train.eval_every": 1}), tmp_path / "often")
    train.train(load.load(TINY, small | {"train.eval_every": 0, "train.checkpoint_every": 0}), tmp_path / "once")
    assert_same(final_params(tmp_path / "often"), final_params(tmp_path / "once"))
    rows = [[row for row in read_rows(tmp_path / name) if row["split"] == "train"] for name in ("often", "once")]
    assert rows[0] == rows[1]


def test_the_best_and_the_two_latest_checkpoints_are_kept(small, tmp_path):
    rates = {"optim.learning_rate": 0.05, "optim.schedule": "constant", "train.steps": 40, "train.eval_every": 4, "seed": 3}
    train.train(load.load(TINY, small | rates | {"train.checkpoint_every": 6}), tmp_path / "run")
    run = Run(tmp_path / "run")
    nats = {row["step"]: row["nats"] for row in run.rows() if row["split"] == "validation"}
    best = min(nats, key=nats.get)
    assert run.status()["best"] == {"step": best, "nats": nats[best], "split": "validation"}
    assert Checkpoints(run.checkpoints, read_only=True).steps() == sorted({best, 36, 40})


def test_without_validation_text_the_best_checkpoint_has_the_lowest_training_loss(small, tmp_path):
    windows = {"batch.framing": "windows", "model.input": "scalar", "corpus.split": (1.0,), "batch.length": 12, "batch.size": 8}
    rates = {"optim.learning_rate": 0.05, "optim.schedule": "constant", "train.steps": 30, "train.eval_every": 5}
    overrides = small | windows | rates | {"train.checkpoint_every": 0}
    with pytest.raises(
        UserError, match=r"train.best=validation: corpus.split leaves no validation text, so train.best must be train."
    ):
        train.train(load.load(TINY, overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train.train(load.load(TINY, overrides | {"train.best": "train"}), tmp_path / "run") == 0
    rows = Run(tmp_path / "run").rows()
    assert {row["split"] for row in rows} == {"train", "train_mean"}
    nats = {row["step"]: row["nats"] for row in rows if row["split"] == "train_mean"}
    best = min(nats, key=nats.get)
    assert Run(tmp_path / "run").status()["best"] == {"step": best, "nats": nats[best], "split": "train"}
    sample = (tmp_path / "run" / "samples" / "00000030.txt").read_text()
    assert len(sample) == 12 + 20  # 12 characters of the corpus and 20 generated characters


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_devices(small, corpus_file, tmp_path):
    """The trainings run in a new process, because the number of devices is fixed when JAX starts."""
    code = (
        "import sys; from charlm.config import load as config; from charlm.training import train; "
        "small = dict(pair.split('=', 1) for pair in sys.argv[2:]); "
        "configs = {n: config.load('configs/tiny.py', small | {'devices': n}) for n in '143'}; "
        "[train.train(configs[n], f'{sys.argv[1]}/{n}') for n in configs]"
    )
    more = {"model.dropout": 0.3, "train.steps": 12, "train.checkpoint_every": 0, "sample.length": 0}
    pairs = [f"{key}={value}" for key, value in (small | more).items()]
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", code, tmp_path, *pairs], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = [int(number) for number in re.findall(r"4 rows on (\d) cpu devices", done.stdout)]
    assert used == [4, 2]  # for devices=4 and devices=3
    assert done.stdout.count("note: devices=3: only 2 of the available devices can share batch.size=4 evenly.") == 1
    assert_near = functools.partial(np.testing.assert_allclose, atol=1e-4)
    for number in ("4", "3"):
        for row, expected in zip(read_rows(tmp_path / number), read_rows(tmp_path / "1"), strict=True):
            assert row["nats"] == pytest.approx(expected["nats"], rel=1e-4)
        jax.tree.map(assert_near, final_params(tmp_path / number), final_params(tmp_path / "1"))


def test_a_diverged_run_stops_and_keeps_its_last_good_checkpoint(small, tmp_path):
    # Learning rate 1 and weight decay 2.5 multiply the weights by 1 - 2.5 = -1.5 in each step. The weights grow without bound.
    overrides = small | {"optim.name": "sgd", "optim.learning_rate": 1.0, "optim.weight_decay": 2.5, "optim.clip_norm": 0.0}
    overrides |= {"optim.schedule": "constant", "train.steps": 40}
    config = load.load(TINY, overrides)
    message = (
        r"step \d+ is (not finite|[\d,.]+ nats per character).*: "
        r".* is marked diverged, and its last good checkpoint is kept"
    )
    with pytest.raises(Failure, match=message):
        train.train(config, tmp_path / "run")
    status = Run(tmp_path / "run").status()
    assert status["state"] == "diverged"
    rows = (tmp_path / "run" / "metrics.jsonl").read_text() if (tmp_path / "run" / "metrics.jsonl").exists() else ""
    assert "NaN" not in rows
    assert all(json.loads(line)["nats"] is not None for line in rows.splitlines())
    checkpoints = Checkpoints(Run(tmp_path / "run").checkpoints, read_only=True)
    saved = [step for step in range(1, status["step"]) if step % 3 == 0 or step % 4 == 0]
    assert checkpoints.steps() == sorted({status["best"]["step"], *saved[-2:]})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final_params(tmp_path / "run")))
    with pytest.raises(Failure, match=r"has diverged \(.* step \d+ is .*\)"):
        train.train(config, tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["adam", *(slow(name) for name in ("sgd", "adamw", "rmsprop"))])
def test_a_run_with_a_learning_rate_of_1000_is_marked_diverged_within_a_log_interval(small, tmp_path, optimizer):
    """The change of the parameters in each step is bounded, so the loss is large but finite. The run is marked diverged."""
    wild = {
        "optim.name": optimizer,
        "optim.learning_rate": 1e3,
        "train.steps": 40,
        "train.log_every": 5,
        "train.eval_every": 20,
    }
    with pytest.raises(Failure, match=r"is marked diverged, and its last good checkpoint is kept"):
        train.train(load.load(TINY, small | wild), tmp_path / "run")
    status = Run(tmp_path / "run").status()
    assert status["state"] == "diverged"
    assert status["step"] <= 5


@pytest.mark.parametrize(("rows", "steps_per_call"), [(8, 10), (500, 5), (800, 2), (2000, 1)])
def test_a_call_makes_fewer_steps_if_each_step_computes_more(small, rows, steps_per_call):
    """A call is one call of the compiled training function. A call makes one step or several steps."""
    config = load.load(TINY, small | {"model.hidden": 64, "model.layers": 2, "batch.size": rows, "batch.length": 1000})
    functions = stack.functions(config, 20)
    parameters = stack.parameter_count(jax.eval_shape(functions.init, jax.random.key(0)))
    assert setup.steps_per_call(0, Framing.of(config), functions) == steps_per_call
    assert steps_per_call * 6 * parameters * rows * 1000 <= 1e12 or steps_per_call == 1


def test_after_a_signal_training_stops_when_the_calls_in_progress_end(small, tmp_path, monkeypatch):
    config = load.load(TINY, small | {"train.steps": 400, "train.log_every": 400, "train.steps_per_call": 10})
    config = load.load(TINY, load.flatten(config) | {"train.eval_every": 400, "train.checkpoint_every": 0})
    seen, add = [], judging.add_metrics

    def added(progress, metrics):
        seen.append(progress.step)  # the number of steps in all calls that have begun so far
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(progress, metrics)

    monkeypatch.setattr(judging, "add_metrics", added)
    assert train.train(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert Run(tmp_path / "run").status()["step"] <= seen[2] + 10


def test_the_message_about_a_divergence_has_the_loss_of_the_last_row(small, tmp_path):
    overrides = small | {"optim.name": "sgd", "optim.learning_rate": 1000.0, "optim.clip_norm": 0.0, "train.log_every": 1}
    with pytest.raises(Failure) as error:
        train.train(load.load(TINY, overrides), tmp_path / "run")
    found = re.match(r"the mean loss up to step (\d+) is ([\d.,]+) nats per character; 25 is the limit: ", str(error.value))
    row = read_rows(tmp_path / "run")[-1]
    assert (row["step"], f"{row['nats']:,.4f}") == (int(found[1]), found[2])
    assert row["nats"] > 25
    # The message shows enough digits of a loss that is just above the limit: 25.0400, not 25.
    with pytest.raises(judging.Diverged, match=r"^the loss is 25\.0400 nats per character; 25 is the limit$"):
        judging.check_loss(25.04, "the loss")
    judging.check_loss(25.0, "the loss")


def test_a_run_with_short_epochs_prints_a_part_of_its_evaluations_and_writes_all(small, tmp_path, capsys, monkeypatch):
    text = tmp_path / "text"
    text.write_text("abc def ghi " * 25, encoding="utf-8")  # epochs of 4 steps
    overrides = small | {"corpus.path": str(text), "train.eval_every": 0, "train.log_every": 50, "train.steps": 200}
    overrides |= {"train.checkpoint_every": 0, "sample.length": 0}

    def shown(**changed):
        made = setup.set_up(load.load(TINY, overrides | changed))
        return [step for step in range(4, 201, 4) if judging.is_evaluation_shown(made, state.Progress(step=step))]

    # At most 20 of the 50 evaluations are shown: the first evaluation at or after each multiple of 10 steps.
    assert shown() == [12, 20, 32, 40, 52, 60, 72, 80, 92, 100, 112, 120, 132, 140, 152, 160, 172, 180, 192, 200]
    assert len(shown(**{"train.log_every": 4})) == len(shown(**{"train.eval_every": 4})) == 50
    capsys.readouterr()
    monkeypatch.setattr(setup, "MOST_SHOWN", 2)
    train.train(load.load(TINY, overrides | {"train.steps": 20}), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "5 evaluations, one every 4 steps; at most 2 are printed, metrics.jsonl has all" in printed
    assert re.findall(r"step (..)/20  validation", printed) == ["12", "20"]
    assert [row["step"] for row in read_rows(tmp_path / "run") if row["split"] == "validation"] == [4, 8, 12, 16, 20]


@pytest.mark.slow
def test_a_terminal_shows_the_training_rows_only_with_the_flag_rows(small, tmp_path, script):
    """Runs the program on a pseudo-terminal and reads what the terminal gets."""
    flags = as_flags(small | {"train.eval_every": 6, "sample.length": 0})

    def on_terminal(*more):
        master, slave = pty.openpty()
        command = script.command("train", f"--config={TINY}", f"--workdir={tmp_path / '-'.join(['run', *more])}", *flags, *more)
        env = script.env() | {"TERM": "xterm", "COLUMNS": "150"}
        process = subprocess.Popen(command, stdout=slave, stderr=subprocess.DEVNULL, env=env)
        os.close(slave)
        written = b""
        with contextlib.suppress(OSError):  # Linux raises EIO at the end of a pseudo-terminal
            while piece := os.read(master, 1 << 16):
                written += piece
        os.close(master)
        assert process.wait() == 0
        return written.decode()

    rows = r"step (\d)/6  epoch [\d.]+  train [\d.]+ nats  lr"
    assert re.findall(rows, on_terminal("--rows")) == ["2", "4", "6"]
    without = on_terminal()
    assert re.findall(rows, without) == []
    assert "step 6/6  validation" in without
    assert "chars/s" in without  # the progress bar


@pytest.mark.slow
def test_a_resumed_run_repeats_the_evaluation_that_a_signal_stopped(small, tmp_path, monkeypatch):
    config = load.load(TINY, small | {"train.steps": 8, "train.eval_every": 4})
    train.train(config, tmp_path / "uninterrupted")
    evaluator = evaluate.evaluator

    def stopped_at_once(*arguments):
        evaluate_split = evaluator(*arguments)

        def stopped(params, encoded, protocol, asked_to_stop):
            signal.raise_signal(signal.SIGTERM)
            return evaluate_split(params, encoded, protocol, asked_to_stop)

        return stopped

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "evaluator", stopped_at_once)
        assert train.train(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert [(row["step"], row["split"]) for row in read_rows(tmp_path / "run")] == [(2, "train"), (4, "train")]
    assert Run(tmp_path / "run").status()["state"] == "incomplete"
    assert train.train(config, tmp_path / "run") == 0
    assert read_rows(tmp_path / "run") == read_rows(tmp_path / "uninterrupted")
    assert_same(final_params(tmp_path / "run"), final_params(tmp_path / "uninterrupted"))


def test_patience_ends_a_run_whose_loss_does_not_improve(small, tmp_path):
    stale = {
        "optim.learning_rate": 1e-30,
        "train.eval_every": 1,
        "train.steps": 30,
        "train.patience": 3,
        "train.log_every": 100,
    }
    assert train.train(load.load(TINY, small | stale), tmp_path / "run") == 0
    status = Run(tmp_path / "run").status()
    assert (status["state"], status["step"], status["best"]["step"]) == ("done", 4, 1)


@pytest.mark.slow
def test_a_run_with_a_damaged_checkpoint_resumes_from_the_previous_checkpoint(small, tmp_path, capsys):
    config = load.load(TINY, small | {"model.dropout": 0.2})
    train.train(config, tmp_path / "uninterrupted")
    train.train(config, tmp_path / "damaged")
    run = Run(tmp_path / "damaged")
    for file in (run.checkpoints / "6").rglob("*"):
        if file.is_file() and "manifest" in file.name:
            file.write_bytes(b"")
    run.write_status("incomplete", 6, None)
    capsys.readouterr()
    assert train.train(config, tmp_path / "damaged") == 0
    captured = capsys.readouterr()
    assert "checkpoints/6 can't be read" in captured.err
    assert "going back to the checkpoint before it" in captured.err
    assert "resuming at step 4 of 6" in captured.out
    assert_same(final_params(tmp_path / "damaged"), final_params(tmp_path / "uninterrupted"))
    assert read_rows(tmp_path / "damaged") == read_rows(tmp_path / "uninterrupted")


@pytest.mark.slow
def test_a_run_killed_before_it_wrote_its_final_status_is_done_after_a_resume(small, tmp_path):
    for name, extra in (
        ("steps", {}),
        ("patience", {"train.patience": 1, "optim.learning_rate": 1e-30, "train.eval_every": 1}),
    ):
        config = load.load(TINY, small | extra)
        train.train(config, tmp_path / name)
        run = Run(tmp_path / name)
        ended, rows, params = run.status(), read_rows(tmp_path / name), final_params(tmp_path / name)
        run.write_status("incomplete", ended["step"], ended["best"])
        assert train.train(config, tmp_path / name) == 0
        assert (run.status(), read_rows(tmp_path / name)) == (ended, rows)
        assert_same(final_params(tmp_path / name), params)


def test_without_a_readable_checkpoint_a_resume_fails_and_changes_nothing(small, tmp_path):
    config = load.load(TINY, small)
    train.train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    for file in run.checkpoints.rglob("manifest*"):
        file.write_bytes(b"")
    run.write_status("incomplete", 6, None)
    rows, steps = read_rows(tmp_path / "run"), sorted(run.checkpoints.iterdir())
    with pytest.raises(Failure, match=r"no checkpoint of .* can be read: restore one from a copy"):
        train.train(config, tmp_path / "run")
    assert (read_rows(tmp_path / "run"), sorted(run.checkpoints.iterdir())) == (rows, steps)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval.lanes": 64, "eval.burn_in": 1300}, "eval.burn_in=1300 with 64 lanes does not fit a split of 1,200 chars"),
        ({"sample.prompt": "Q"}, r"sample.prompt has .*'Q' \(U\+0051\)"),
    ],
)
def test_mistakes_in_eval_and_sample_keys_are_reported_before_training(small, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train.train(load.load(TINY, small | overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_error_for_a_short_corpus_names_the_number_of_chars_needed(small, tmp_path):
    config = load.load(TINY, small | {"batch.size": 200, "batch.length": 100})
    with pytest.raises(UserError, match=r"has 10,800 chars, but one batch .* needs 20,001"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_symbols_that_only_the_validation_split_has_are_in_the_vocabulary_unless_vocab_source_is_train(
    small, corpus_file, tmp_path
):
    text = tmp_path / "text"
    text.write_text(corpus_file.read_text() + "Q?", encoding="utf-8")
    overrides = small | {"corpus.path": str(text), "train.steps": 2, "sample.length": 0}
    assert train.train(load.load(TINY, overrides), tmp_path / "corpus") == 0
    vocab = Run(tmp_path / "corpus").vocab()
    assert vocab.symbols == "".join(sorted({*text.read_text()}))
    assert vocab.specials == ()
    documents = {"corpus.documents": "lines", "batch.framing": "documents"}
    assert train.train(load.load(TINY, overrides | documents), tmp_path / "documents") == 0
    assert set(Run(tmp_path / "documents").vocab().symbols) == {*text.read_text()} - {"\n"}
    only_train = overrides | {"vocab.source": "train"}
    with pytest.raises(UserError, match=r"the validation split has symbols .* '\?' \(U\+003F\), 'Q' \(U\+0051\)"):
        train.train(load.load(TINY, only_train), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train.train(load.load(TINY, only_train | {"vocab.unknown": True}), tmp_path / "unk") == 0
    assert Run(tmp_path / "unk").vocab().symbols == "".join(sorted({*corpus_file.read_text()}))


@pytest.mark.slow
def test_a_run_with_the_old_default_of_vocab_source_resumes_if_the_vocabulary_is_the_same(small, corpus_file, tmp_path):
    with_q = tmp_path / "with_q"
    with_q.write_text(corpus_file.read_text() + "Q?", encoding="utf-8")
    for text, name in ((corpus_file, "same"), (with_q, "other")):
        overrides = small | {"corpus.path": str(text), "vocab.unknown": True, "train.steps": 4, "sample.length": 0}
        old = load.load(TINY, overrides | {"vocab.source": "train"})
        workdir = tmp_path / name
        assert train.train(old, workdir) == 0
        Run(workdir).write_status("incomplete", 4, None)
        if name == "same":
            assert train.train(load.load(TINY, overrides), workdir) == 0
            assert Run(workdir).config().vocab.source == "train"
        else:
            before = {file: file.read_bytes() for file in workdir.glob("*.json")}
            with pytest.raises(UserError, match=r"vocab\.json is not the vocabulary .* set vocab\.source=train as in"):
                train.train(load.load(TINY, overrides), workdir)
            assert {file: file.read_bytes() for file in workdir.glob("*.json")} == before
            assert train.train(old, workdir) == 0
    Run(tmp_path / "same").write_status("incomplete", 4, None)
    other = load.load(TINY, small | {"vocab.unknown": True, "train.steps": 4, "sample.length": 0, "model.hidden": 9})
    with pytest.raises(UserError, match=r"holds a run with another config: model\.hidden \(8 saved, 9 given\); choose"):
        train.train(other, tmp_path / "same")


def test_describe_lists_odd_symbols_with_their_counts(small, corpus_file, tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("\ufeff" + corpus_file.read_text() + "\x07\ufeff\ue000\x07\u00a0\x07\ufeff", encoding="utf-8")
    describe = lambda path: opening.describe_only(load.load(TINY, small | {"corpus.path": str(path)}), f"{tmp_path}/n.dot", 1)  # noqa: E731
    assert describe(text) == 0
    line = "odd symbols: U+0007 3, U+FEFF ZERO WIDTH NO-BREAK SPACE 2, U+00A0 NO-BREAK SPACE 1, U+E000 1"
    assert line in capsys.readouterr().out.splitlines()
    assert describe(corpus_file) == 0
    assert "odd symbols" not in capsys.readouterr().out
    text.write_text(corpus_file.read_text() + "".join(map(chr, range(0xE000, 0xE019))), encoding="utf-8")
    assert describe(text) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("U+E013 1, and 5 more")


def test_a_text_of_300_characters_is_trained_on_with_finite_losses(small, tmp_path):
    text = tmp_path / "text"
    text.write_text("Sun men sang ran a past and mill. River " * 8, encoding="utf-8")
    assert train.train(load.load(TINY, small | {"corpus.path": str(text), "train.steps": 2}), tmp_path / "run") == 0
    rows = Run(tmp_path / "run").rows()
    assert [row["split"] for row in rows] == ["train", "train_mean", "validation"]
    assert all(0 < row["nats"] < 20 for row in rows)


# The handlers of SIGINT before a training: train.py sets SIG_DFL, and a notebook has default_int_handler.
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.default_int_handler])
def test_only_the_first_signal_is_caught(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with signals.caught() as received:
            signal.raise_signal(signal.SIGINT)
            assert received == [signal.SIGINT]
            # The old handler is back. With it, a second signal would end a script, or raise KeyboardInterrupt in a notebook.
            assert signal.getsignal(signal.SIGINT) == handler
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("framing", ["stream", slow("windows")])
def test_several_steps_in_one_call_give_the_same_result_as_single_steps(small, tmp_path, framing):
    """The two results are equal bit for bit, although there are log rows, evaluations and checkpoints between the calls."""
    every = {"train.log_every": 7, "train.eval_every": 16, "train.checkpoint_every": 11}
    more = {"train.steps": 33, "batch.framing": framing, **every}
    for steps_per_call in (1, 4):
        checked = load.load(TINY, small | more | {"train.steps_per_call": steps_per_call, "model.dropout": 0.3})
        assert train.train(checked, tmp_path / str(steps_per_call)) == 0
    assert read_rows(tmp_path / "4") == read_rows(tmp_path / "1")
    assert_same(final_params(tmp_path / "4"), final_params(tmp_path / "1"))


def test_each_step_uses_the_learning_rate_that_the_schedule_gives(small, tmp_path):
    """From the fourth step on, the learning rate is almost zero, so the parameters no longer change."""
    falling = {"optim.schedule": "step", "optim.decay_steps": 3, "optim.decay_rate": 1e-30, "optim.warmup_steps": 0}
    events = {"train.log_every": 10, "train.eval_every": 10, "train.checkpoint_every": 2}
    params = {}
    for steps, steps_per_call in ((2, 1), (3, 1), (4, 2)):
        more = {"train.steps": steps, "train.steps_per_call": steps_per_call}
        assert train.train(load.load(TINY, small | falling | events | more), tmp_path / str(steps)) == 0
        params[steps] = final_params(tmp_path / str(steps))
    assert_same(params[4], params[3])
    assert (params[2]["head_kernel"] != params[3]["head_kernel"]).any()


def test_a_call_ends_at_every_step_that_is_logged_or_evaluated(small):
    made = setup.set_up(load.load(TINY, small | {"train.steps": 100, "train.log_every": 14, "train.steps_per_call": 4}))
    made = dataclasses.replace(made, eval_every=30, checkpoint_every=0, steps_per_call=4)
    step, calls = 0, []
    while step < 100:
        count = feeding.steps_at_once(made, step)
        calls.append((step, step + count))
        step += count
    assert step == 100
    ends = {end for _, end in calls}
    assert ends >= set(range(14, 100, 14)) | {30, 60, 90, 100}
    assert {end - begin for begin, end in calls} == {1, 4}
    assert sum(end - begin == 4 for begin, end in calls) > 10
