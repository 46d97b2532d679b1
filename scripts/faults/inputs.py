"""Gives texts in wrong encodings, damaged texts and binary files to train. Also changes a folder of texts before a resume.

A text is written in some encoding, with or without a byte-order mark. Some of the texts are then truncated, or one bit of them
is flipped. The training reads the text in the same encoding or in another encoding. The training must either succeed, or end
with one error sentence that names the file. If it ends with an error, it must not leave a run directory.

Each program is also given a pipe to which no program writes. The program must end with one error sentence instead of waiting
forever.

A run that trains on a folder of texts is stopped, and the folder is changed. train must then refuse to resume the run. After
the folder is restored, the resumed run must equal a run without a fault.
"""

import concurrent.futures
import os
import pathlib
import random
import shutil
import signal
from collections.abc import Callable

from faults import checks
from faults.runs import Result, Runs, command, finish, harm, make_text, start, succeed, wait_for_step

TRIES = 16  # number of files
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "shift_jis", "latin-1", "iso2022_kr", "utf-7")
BEYOND_ASCII = "äé中日の한😀\ufeff\x07\u2028"


def results(runs: Runs) -> list[Result]:
    return [_texts(runs), _folders(runs), pipes(runs)]


def _texts(runs: Runs) -> Result:
    rng, folder = runs.random("inputs"), runs.folder / "inputs"
    folder.mkdir()
    files = [folder / f"{number}.txt" for number in range(TRIES)]
    written = [_write_text(file, rng) for file in files]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        tried = list(pool.map(lambda file, how: _train(runs, file, *how), files, written))
    trained = sum(is_trained for is_trained, _ in tried)
    failures = [line for _, lines in tried for line in lines]
    note = f"{trained} trained, {TRIES - trained} refused"
    return Result("texts in wrong encodings, damaged texts, binary files", TRIES, failures, note)


def _train(runs: Runs, file: pathlib.Path, how: str, encoding: str) -> tuple[bool, list[str]]:
    """Trains two steps. Returns whether the training succeeded, and one line for each failure."""
    workdir = runs.folder / f"inputs_{file.stem}"
    overrides = {"corpus.path": file, "corpus.encoding": encoding, "train.steps": 2, "devices": 1}
    status, _, errors = checks.outcome(runs.train(workdir, "stream", **overrides))
    if status == 0:
        return True, []
    what = f"{file}: {how}, read as {encoding}"
    failures = checks.refusal(status, errors, (str(file),), what)
    return False, [*failures, *([f"{what}: the refused training made {workdir}"] if workdir.exists() else [])]


def _write_text(file: pathlib.Path, rng: random.Random) -> tuple[str, str]:
    """Writes a text file or a file of random bytes. Returns a description of the file, and the encoding in which to read it."""
    written, read = rng.choice(ENCODINGS), rng.choice(ENCODINGS)
    if rng.random() < 0.15:
        file.write_bytes(rng.randbytes(3000))
        return "random bytes", read
    text = "".join(rng.choice(BEYOND_ASCII) if rng.random() < 0.2 else symbol for symbol in make_text(3000, rng.randrange(99)))
    file.write_bytes(text.encode(written, "ignore"))
    how = rng.choice(("whole", "truncated", "flipped"))
    if how != "whole":
        harm(file, how, rng.random(), rng.randrange(8))
    return f"{written}, {how}", rng.choice((written, read))


def _add(folder: pathlib.Path) -> None:
    (folder / "2b.txt").write_text("a new file\n")


def _remove(folder: pathlib.Path) -> None:
    (folder / "2.txt").unlink()


def _change(folder: pathlib.Path) -> None:
    text = (folder / "2.txt").read_text()
    (folder / "2.txt").write_text(text.swapcase())


def _cut(folder: pathlib.Path) -> None:
    """Truncates the last file so that only a part of its last character remains."""
    (folder / "10.txt").write_bytes((folder / "10.txt").read_bytes()[:-1])


def _rename(folder: pathlib.Path) -> None:
    (folder / "10.txt").rename(folder / "1b.txt")  # the texts of the folder are then in another order


CHANGES: dict[str, Callable[[pathlib.Path], None]] = {
    "added": _add,
    "removed": _remove,
    "changed": _change,
    "cut within a character": _cut,
    "renamed": _rename,
}


def _folders(runs: Runs) -> Result:
    """Changes a folder of three files after a run was stopped, and then tries to resume the run."""
    texts, failures = runs.folder / "texts", []
    texts.mkdir()
    for seed, name in enumerate(("1.txt", "2.txt", "10.txt")):
        (texts / name).write_text(make_text(6000, seed) + "é", encoding="utf-8")
    straight, stopped = runs.folder / "folder_straight", runs.folder / "folder_stopped"
    intact = runs.folder / "texts_intact"
    shutil.copytree(texts, intact)
    succeed(runs.train(straight, "stream", **{"corpus.path": texts}))
    resume = runs.train(stopped, "stream", **{"corpus.path": texts})
    process = start(resume)
    wait_for_step(stopped, 60, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    for what, change in CHANGES.items():
        change(texts)
        status, _, errors = checks.outcome(resume)
        words = ("has changed since the run", "10.txt is not UTF-8")
        failures += checks.refusal(status, errors, words, f"a resume after a file was {what}")
        shutil.rmtree(texts)
        shutil.copytree(intact, texts)
    succeed(resume)
    failures += checks.survival(stopped, straight)
    return Result("folder of texts changed before a resume", len(CHANGES), failures, "refused until the folder was restored")


def pipes(runs: Runs) -> Result:
    """Starts each program that reads a text with a pipe to which no program writes."""
    pipe, run = runs.folder / "pipe", runs.straight("stream")
    os.mkfifo(pipe)
    commands = [
        command("sample", f"--workdir={run}", f"--prompt_file={pipe}"),
        command("evaluate", f"--workdir={run}", f"--text={pipe}"),
        runs.train(runs.folder / "pipe_run", "stream", **{"corpus.path": pipe}),
    ]
    failures = []
    for tried in commands:
        status, _, errors = checks.outcome(tried)
        failures += checks.refusal(status, errors, ("is a pipe",), f"{tried[1]} with a pipe")
    return Result("pipe to which no program writes: sample, evaluate, train", len(commands), failures)
