"""The run directory: all that lasts of a training, and the only thing that evaluate, sample and compare read.

config.json       every key of the config          samples/STEP.txt    text written at each evaluation
vocab.json        symbols in the order of ids       checkpoints/STEP    the best and the two latest
corpus.json       where the text came from          tensorboard/        the same scalars and the config
environment.json  one entry for each start          lock                held while a process trains here
status.json       state, step, best                 metrics.jsonl       one row for each log interval and evaluation
evaluations.jsonl what scripts/evaluate.py found
"""

import contextlib
import datetime
import fcntl
import importlib.metadata
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from charlm import files, measures
from charlm.config import keys, load
from charlm.data import corpora
from charlm.data.vocab import Vocab
from charlm.errors import Broken, UserError
from charlm.files import opened, sealed
from charlm.progress import warn

SCALARS = {"nats", "bits", "perplexity", "learning_rate", "grad_norm", "chars_per_second"}  # that TensorBoard shows
STATES = ("incomplete", "done", "diverged", "failed")
FIRST_FILES = {"lock", "vocab.json", "corpus.json", "config.json", "status.json"}  # all that a start can die amid writing
PACKAGES = ("charlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Run:
    """The files of one run directory, by name."""

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = pathlib.Path(workdir)
        self.checkpoints = self.workdir / "checkpoints"
        self.tensorboard = self.workdir / "tensorboard"
        self._metrics = self.workdir / "metrics.jsonl"

    def config(self) -> ConfigDict:
        fields = self._json("config.json")
        try:
            return load.from_dict(fields)
        except UserError as error:
            raise UserError(f"{self.workdir / 'config.json'}: {error}") from error

    def config_fields(self) -> dict[str, object]:
        """The config as it was written, flat and unchecked: what another version of charlm wrote can be compared too."""
        return keys.before_keys_existed() | load.flatten(self._json("config.json"))

    def vocab(self) -> Vocab:
        try:
            return Vocab.from_dict(self._json("vocab.json"))
        except ValueError as error:
            raise UserError(f"{self.workdir / 'vocab.json'} is damaged ({error}): restore it from a copy.") from error

    def corpus(self) -> dict:
        corpus = self._json("corpus.json")
        if not isinstance(corpus.get("splits"), dict) or not isinstance(corpus.get("sha256"), str):
            raise UserError(f"{self.workdir / 'corpus.json'} is damaged (it has no splits and sha256): restore it from a copy.")
        return corpus

    def status(self) -> dict:
        status = self._json("status.json")
        if status.get("state") not in STATES:
            raise UserError(f"{self.workdir / 'status.json'} has the state {status.get('state')!r}, which is none of {STATES}.")
        return {"step": 0, "best": None, "message": "", "rows": 0} | status

    def write_status(self, state: str, step: int, best: dict | None, message: str = "", rows: int = 0) -> None:
        """Args: rows: of metrics, that were written by then."""
        self._write("status.json", {"state": state, "step": step, "best": best, "message": message, "rows": rows})

    def write_sample(self, step: int, text: str) -> None:
        self._write(f"samples/{step:08d}.txt", text)

    def append(self, row: dict) -> None:
        """Adds a row to the metrics; infinite values become null."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(sealed(measures.finite(row)) + "\n")

    def rows(self) -> list[dict]:
        """The rows of the metrics; a damaged last line, as a crash leaves it, is passed over.

        Raises:
          UserError: a line before the last is damaged.
        """
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = opened(line)
                if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                    raise ValueError("no object with a step")
            except ValueError as error:
                if number == len(lines):
                    break
                raise UserError(f"{self._metrics} line {number} is no row of metrics ({error}): remove that line.") from error
            rows.append(row)
        return rows

    def rewind(self, step: int, evaluated: bool) -> tuple[int, int]:
        """Drops what was logged after a step, and a damaged last line; returns how many lines stayed and how many went.

        Args:
          evaluated: whether the evaluation of this very step was finished, so that its rows stay.
        """
        if not self._metrics.exists():
            return 0, 0
        text = self._metrics.read_text(encoding="utf-8", errors="replace")
        rows = [row for row in self.rows() if row["step"] < step + (evaluated or row.get("split") == "train")]
        kept = [sealed(row) + "\n" for row in rows]
        if "".join(kept) != text:
            self._write("metrics.jsonl", "".join(kept))
        return len(kept), len(text.splitlines()) - len(kept)

    def sync_metrics(self) -> None:
        """Has the rows on disk before a checkpoint that counts on them."""
        with contextlib.suppress(FileNotFoundError), self._metrics.open("rb") as file:
            os.fsync(file.fileno())

    def begin(self, config: ConfigDict, vocab: Vocab, corpus: dict) -> None:
        """Writes what a new run is made of; status.json last, since it says that there is a run."""
        self._write("vocab.json", vocab.to_dict())
        self._write("corpus.json", corpus)
        self._write("config.json", load.to_dict(config))
        self.write_status("incomplete", 0, None)

    def splits(self) -> dict[str, corpora.Split]:
        """The run's corpus, loaded anew.

        Raises:
          UserError: it has changed since the run began, or can't be had.
        """
        corpus = corpora.load(self.config())
        self._check_same(corpus.provenance)
        return corpus.splits

    def check_data(self, vocab: Vocab, corpus: dict) -> None:
        """Raises a UserError where the corpus is no longer the one that this run began with."""
        self._check_same(corpus)
        if self.vocab() != vocab:
            raise UserError(
                f"{self.workdir / 'vocab.json'} is not the vocabulary of this run's corpus: restore it from a copy."
            )

    def _check_same(self, corpus: dict) -> None:
        then = self.corpus()
        if any(then.get(key) != corpus.get(key) for key in ("sha256", "splits", "documents")):
            raise UserError(
                f"corpus {corpus['name']} has changed since --workdir={self.workdir} began (sha256 {then.get('sha256')} then, "
                f"{corpus['sha256']} now): restore the text or choose another directory."
            )

    @contextlib.contextmanager
    def scalars(self, step: int) -> Iterator[Callable[[dict], None]]:
        """A function that logs a row: to metrics.jsonl, which is the record, and to TensorBoard, which mirrors it.

        Args:
          step: at which the training goes on; TensorBoard then hides what an earlier start logged after it.
        """
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # Not the SummaryWriter around it: that one writes from a thread, and waits for it for ever where the disk is full.
        self.tensorboard.mkdir(exist_ok=True)
        writer = event_file_writer.EventsWriter(os.fspath(self.tensorboard / "events"), f".{os.getpid()}.{time.time_ns()}")

        def write(**content) -> None:
            writer.write_event(Event(wall_time=time.time(), **content))

        write(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        hparams = load.flatten(self._json("config.json"))
        plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in hparams.items()}
        for described in summary.hparams(plain, {"validation/nats": 0.0, "validation/perplexity": 0.0}):
            write(summary=described)

        def log(row: dict) -> None:
            self.append(row)
            for name in SCALARS & row.keys():
                if math.isfinite(row[name]):
                    write(summary=summary.scalar(f"{row['split']}/{name}", row[name]), step=row["step"])
            if row["split"] != "train":
                writer.flush()

        try:
            yield log
        finally:
            with contextlib.suppress(OSError):  # the metrics tell it
                writer.close()

    def note_evaluation(self, result: dict) -> None:
        """Adds what scripts/evaluate.py found to evaluations.jsonl, where the directory can be written."""
        try:
            with (self.workdir / "evaluations.jsonl").open("ab+") as file:
                torn = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"  # a line whose writer died amid it
                file.write(b"\n" * bool(torn) + sealed(measures.finite(result)).encode() + b"\n")
        except OSError as error:
            warn(f"{error.filename} can't be written ({error.strerror}): compare.py will not have this figure.")

    def starts(self) -> list[dict]:
        """What `note_start` has written, oldest first."""
        starts = self._json("environment.json").get("starts", [])
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise UserError(f"{self.workdir / 'environment.json'} is damaged (no list of starts): restore it from a copy.")
        return starts

    def note_start(self, device: str, parameters: int, total_steps: int) -> None:
        """Adds versions, device, commit and command of this start, and what it trains for how long, to environment.json."""
        starts = []
        try:
            starts = self.starts()
        except UserError:
            if self._metrics.exists():  # this is not the first start, but no reason not to train
                warn(f"{self.workdir / 'environment.json'} is damaged or gone: what it said of earlier starts is lost.")
        starts.append(
            {
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "command": sys.orig_argv,
                "directory": os.getcwd(),
                "commit": _commit(),
                "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
                "device": device,
                "machine": f"{platform.node()} {platform.machine()} {os.cpu_count()} cores",
                "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
                "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
                "parameters": parameters,
                "total_steps": total_steps,
            }
        )
        self._write("environment.json", {"starts": starts})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for one training process; the kernel lets go of it when the process ends, however that is.

        Raises:
          UserError: another process holds it.
        """
        with (self.workdir / "lock").open("a+", encoding="utf-8") as file:
            for attempt in range(5):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if attempt < 4:
                        time.sleep(0.05)  # it may be somebody in `is_training`, who lets go at once
                        continue
                    file.seek(0)
                    raise UserError(
                        f"--workdir={self.workdir} is in use by {file.read().strip() or 'another process'}: "
                        "wait for it, stop it, or choose another directory."
                    ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Raises a Broken where the directory can't be written any more."""
        try:
            yield
        except OSError as error:
            raise Broken(
                f"{self.workdir} can't be written ({error.strerror or error}): "
                "once that is mended, the same command goes on from the last checkpoint."
            ) from error

    def is_training(self) -> bool:
        """Whether a process holds the directory at this moment."""
        try:
            with (self.workdir / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _text(self, name: str) -> str:
        path = self.workdir / name
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist: --workdir must be the directory of a run.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} can't be read: {error}.") from error

    def _json(self, name: str) -> dict:
        try:
            fields = opened(self._text(name))
            if not isinstance(fields, dict):
                raise ValueError("no object")
            return fields
        except (ValueError, RecursionError) as error:
            way_out = ", or remove its seal if you have changed it yourself" if "seal" in str(error) else ""
            raise UserError(f"{self.workdir / name} is damaged ({error}): restore it from a copy{way_out}.") from error

    def _write(self, name: str, content: str | dict) -> None:
        """Writes a whole file or nothing of it."""
        text = content if isinstance(content, str) else sealed(content, indent=1) + "\n"
        path = self.workdir / name
        path.parent.mkdir(exist_ok=True)
        files.write(path, text)


def check_checkpoint_name(which: str) -> None:
    """Raises a UserError where --checkpoint is neither best, latest nor a step."""
    if which not in ("best", "latest") and not (which.isascii() and which.isdigit()):
        raise UserError(f"--checkpoint={which} is not right: it must be best, latest or a step.")


def exists(workdir: str, config: ConfigDict) -> bool:
    """Whether a run with this config is in the directory already; nothing is written.

    Raises:
      UserError: the directory holds something else, a run with another config, or can't be written.
    """
    path = pathlib.Path(workdir)
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:  # TensorStore knows files by names of UTF-8 alone
        raise UserError(f"--workdir={workdir} is no UTF-8: choose a directory whose name is.") from error
    if path.exists() and not path.is_dir():
        raise UserError(f"--workdir={workdir} is a file: give a directory.")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
        raise UserError(f"--workdir={workdir} can't be written: choose a directory that can.")
    names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if "status.json" not in names:
        # A start that died leaves its lock, which is made first, and files of its own; anything else is not ours.
        if {"config.json", "checkpoints"} <= names:
            raise UserError(f"{path / 'status.json'} does not exist, though a run is there: restore it from a copy.")
        if names and ("lock" not in names or {name.removesuffix(".new") for name in names} - FIRST_FILES):
            raise UserError(f"--workdir={workdir} is not empty and not the directory of a run: choose another.")
        return False
    run = Run(path)
    run.status()
    different = load.differences(load.to_dict(run.config()), load.to_dict(config))
    if different:
        listed = load.in_words(different)
        raise UserError(f"--workdir={workdir} holds a run with another config: {listed}; choose another directory.")
    return True


def make(workdir: str) -> None:
    """Makes the directory of a run. Raises a UserError where that can't be done."""
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be written ({error.strerror}): choose a directory that can.") from error


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with a + where files differ from it; None outside a checkout."""
    git = ["git", "-C", os.fspath(pathlib.Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
        return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None
