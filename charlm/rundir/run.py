"""Reads and writes the files of a run directory.

The programs `evaluate`, `sample` and `compare` get all their information about a run from these files:

config.json        every key of the config           samples/STEP.txt   text sampled at each evaluation
vocab.json         symbols in the order of ids       checkpoints/STEP   the best and the two latest checkpoints
corpus.json        the source of the text            unreadable/        checkpoints that could not be read
environment.json   one entry for each start          lock               names the process that trains this run
status.json        state, step, best                 events.*           metrics, config and samples for TensorBoard
extensions.json    one entry for each change of the config, by `train.py --extend` or on resume
parent.json        with `train.init_from`: the run whose parameters this run began with
cells.json         with a cell in a file of the user: the SHA-256 digest of the file
metrics.jsonl      one row for each log interval and each evaluation
evaluations.jsonl  results of the program evaluate
"""

import contextlib
import os
import pathlib
import platform
import shlex
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from charlm import files, measures
from charlm.config import keys, load
from charlm.data import corpora
from charlm.data.vocab import Vocab
from charlm.errors import Broken, UserError
from charlm.files import opened, sealed
from charlm.progress import warn
from charlm.rundir import environment

STATES = ("incomplete", "done", "diverged", "failed")


class Run:
    """The files of one run directory.

    Attributes:
      workdir: the run directory.
      checkpoints: the folder of the checkpoints.

    A method that reads a file raises a UserError if the file is missing, unreadable or damaged.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = pathlib.Path(workdir)
        self.checkpoints = self.workdir / "checkpoints"
        self._metrics = self.workdir / "metrics.jsonl"
        self._lock = self.workdir / "lock"

    def config(self) -> ConfigDict:
        """The config of the run, after validation."""
        fields = self._json("config.json")
        try:
            return load.from_dict(fields)
        except UserError as error:
            raise UserError(f"{self.workdir / 'config.json'}: {error}") from error

    def config_fields(self) -> dict[str, object]:
        """Returns a dict from dotted config keys to the values in config.json.

        The values are not validated. Runs of other charlm versions can therefore be compared too. If the run is older than
        a config key, config.json does not contain this key. The function then takes the value of the key from
        `keys.effective`.
        """
        return keys.effective(load.flatten(self._json("config.json")))

    def vocab(self) -> Vocab:
        """The vocabulary of the run."""
        try:
            return Vocab.from_dict(self._json("vocab.json"))
        except ValueError as error:
            raise UserError(f"{self.workdir / 'vocab.json'} is damaged ({error}): restore it from a copy.") from error

    def corpus(self) -> dict[str, Any]:
        """Where the corpus came from, as a dict.

        `sha256` is the digest of the text. `splits` maps split names to numbers of characters.
        """
        corpus = self._json("corpus.json")
        if not isinstance(corpus.get("splits"), dict) or not isinstance(corpus.get("sha256"), str):
            raise UserError(f"{self.workdir / 'corpus.json'} is damaged (it has no splits and sha256): restore it from a copy.")
        return corpus

    def parent(self) -> dict[str, Any] | None:
        """The run whose parameters this run began with, or None.

        `path` is the directory of the other run. `step` is the step of the checkpoint with these parameters, and `digest` is
        the digest of the parameters. `new_symbols` lists the symbols that only the vocabulary of this run has.
        `dropped_symbols` lists the symbols that only the vocabulary of the other run has.
        """
        path = self.workdir / "parent.json"
        if not path.exists():
            if self.config_fields()["train.init_from"] is not None:
                raise UserError(f"{path} is missing, although the run has train.init_from: restore it from a copy.")
            return None
        parent = self._json("parent.json")
        types = {"path": str, "step": int, "digest": str, "new_symbols": list, "dropped_symbols": list}
        if wrong := [name for name, kind in types.items() if not isinstance(parent.get(name), kind)]:
            raise UserError(f"{path} is damaged (it has no {wrong[0]}): restore it from a copy.")
        return parent

    def cells(self) -> dict[str, str]:
        """File → SHA-256 digest when the run began, for the files of the user that hold a cell of this run."""
        recorded = self._json("cells.json").get("sha256")
        if not isinstance(recorded, dict) or not all(isinstance(digest, str) for digest in recorded.values()):
            raise UserError(f"{self.workdir / 'cells.json'} is damaged (it has no digests): restore it from a copy.")
        return recorded

    def extensions(self) -> list[dict[str, Any]]:
        """The changes of the run's config, oldest first.

        A change was made by `train.py --extend`, or when the run was resumed with another value of a key in `keys.RESUMABLE`.
        Each change is a dict. `step` is the number of steps that were trained before the change. `rows` is the number of rows
        that metrics.jsonl had before the change. `before` and `after` map the changed keys to their values. `resets_best` says
        whether evaluations before and after the change have different protocols. If so, only evaluations after the change can
        be the best evaluation.
        """
        path = self.workdir / "extensions.json"
        if not path.exists():
            if self._noted_extensions():
                raise UserError(f"{path} is missing, although the config of the run was changed: restore it from a copy.")
            return []
        entries = self._json("extensions.json").get("extensions")
        types = {"step": int, "rows": int, "before": dict, "after": dict, "resets_best": bool}
        is_right = isinstance(entries, list) and all(
            isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in types.items())
            for entry in entries
        )
        if not is_right:
            raise UserError(f"{path} is damaged (it has no list of changes): restore it from a copy.")
        assert isinstance(entries, list)
        config = self.config_fields()
        # `extend` writes config.json last. If the process was killed before it wrote config.json, the last change was not made.
        if entries and any(config.get(name) != value for name, value in entries[-1]["after"].items()):
            return entries[:-1]
        return entries

    def first_config_fields(self) -> dict[str, object]:
        """Returns what `config_fields` returned before the changes in `extensions`."""
        fields = self.config_fields()
        for entry in reversed(self.extensions()):
            fields |= entry["before"]
        return fields

    def extend(self, entry: dict[str, Any], config: ConfigDict) -> None:
        """Changes the config of the run and adds an entry to extensions.json.

        config.json is written last. If the process is killed before it writes config.json, the run keeps its old config and can
        be resumed with the old config. The next call then replaces the entry.
        """
        status = self.status()
        self._write("extensions.json", {"extensions": [*self.extensions(), entry]})
        self.write_status("incomplete", status["step"], status["best"], rows=status["rows"])
        self._write("config.json", load.to_dict(config))

    def status(self) -> dict[str, Any]:
        """The contents of status.json: `state`, `step`, `best`, `message` and `rows`. `write_status` explains these keys."""
        status = self._json("status.json")
        if status.get("state") not in STATES:
            raise UserError(
                f"{self.workdir / 'status.json'} has the state {status.get('state')!r}: must be one of {', '.join(STATES)}."
            )
        return {"step": 0, "best": None, "message": "", "rows": 0} | status

    def saved_step(self) -> int:
        """The step of the latest checkpoint, without reading it. 0 if the run has no checkpoint."""
        names = [path.name for path in self.checkpoints.iterdir()] if self.checkpoints.is_dir() else []
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def write_status(self, state: str, step: int, best: dict | None, message: str = "", rows: int = 0) -> None:
        """Replaces status.json.

        Args:
          state: a string of STATES.
          step: the number of steps trained.
          best: the best evaluation, as {"step", "nats", "split"}, or None.
          message: why the run diverged or failed.
          rows: the number of rows in metrics.jsonl.
        """
        self._write("status.json", {"state": state, "step": step, "best": best, "message": message, "rows": rows})

    def write_sample(self, step: int, text: str) -> None:
        """Writes the text sampled at a step."""
        self._write(f"samples/{step:08d}.txt", text)

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row to metrics.jsonl. Infinity and NaN become null."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(sealed(measures.finite(row)) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl. A damaged last line is skipped, because a crash can damage the last line.

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
                    raise ValueError("not an object with a step")
            except ValueError as error:
                if number == len(lines):
                    break
                raise UserError(
                    f"{self._metrics} line {number} is not a row of metrics ({error}): remove that line."
                ) from error
            rows.append(row)
        return rows

    def rewind(self, step: int, evaluated: bool) -> tuple[int, int]:
        """Removes the rows of later steps from metrics.jsonl. Also removes a damaged last line.

        Args:
          step: the step at which training resumes.
          evaluated: whether the evaluation at this step was finished. If true, the rows of this evaluation are kept.

        Returns:
          The number of lines kept and the number of lines removed.
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
        """Flushes metrics.jsonl to disk.

        Call this method before you save a checkpoint. A checkpoint stores the number of rows, so these rows must be on disk.
        """
        with contextlib.suppress(FileNotFoundError), self._metrics.open("rb") as file:
            os.fsync(file.fileno())

    def begin(
        self,
        config: ConfigDict,
        vocab: Vocab,
        corpus: dict[str, Any],
        parent: dict[str, Any] | None = None,
        cells: dict[str, str] | None = None,
    ) -> None:
        """Writes the first files of a new run.

        status.json is written last, because `exists` recognises the directory of a run by this file.

        Args:
          parent: the dict that the method `parent` will return; None if the run begins with random parameters.
          cells: the dict that the method `cells` will return; empty or None if all cells of the run are charlm's.
        """
        self._write("vocab.json", vocab.to_dict())
        self._write("corpus.json", corpus)
        for name, content in (("parent.json", parent), ("cells.json", {"sha256": cells} if cells else None)):
            if content is not None:
                self._write(name, content)
            else:  # a start that was killed before it wrote status.json may have left this file
                (self.workdir / name).unlink(missing_ok=True)
        self._write("config.json", load.to_dict(config))
        self.write_status("incomplete", 0, None)

    def splits(self) -> dict[str, corpora.Split]:
        """Loads the run's corpus and returns a dict from split name to split.

        Raises:
          UserError: the corpus has changed since the run began, or can't be loaded.
        """
        corpus = corpora.load(self.config())
        self._check_same(corpus.provenance)
        return corpus.splits

    def check_data(self, vocab: Vocab, corpus: dict[str, Any]) -> None:
        """Raises a UserError if the corpus or the vocabulary has changed since the run began."""
        self._check_same(corpus)
        if self.vocab() != vocab:
            raise UserError(
                f"{self.workdir / 'vocab.json'} is not the vocabulary of this run's corpus: restore it from a copy, set "
                f"vocab.source={self.config_fields()['vocab.source']} as in the run, or begin another run with "
                f"train.init_from={self.workdir}."
            )

    def _check_same(self, corpus: dict[str, Any]) -> None:
        recorded = self.corpus()
        if any(recorded.get(key) != corpus.get(key) for key in ("sha256", "splits", "documents")):
            raise UserError(
                f"corpus {corpus['name']} has changed since the run in --workdir={self.workdir} began "
                f"(sha256 {recorded.get('sha256')} then, {corpus['sha256']} now): restore the text or choose another directory."
            )

    def note_evaluation(self, result: dict[str, Any]) -> None:
        """Adds a result of evaluate.py to evaluations.jsonl. Warns if the file can't be written."""
        try:
            with (self.workdir / "evaluations.jsonl").open("ab+") as file:
                # The last line has no line break if another process was killed during a write.
                incomplete = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
                file.write(b"\n" * bool(incomplete) + sealed(measures.finite(result)).encode() + b"\n")
        except OSError as error:
            warn(f"{error.filename} can't be written ({error.strerror}): compare will not show this result.")

    def starts(self) -> list[dict[str, Any]]:
        """The entries that `note_start` wrote to environment.json, oldest first."""
        starts = self._json("environment.json").get("starts", [])
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise UserError(
                f"{self.workdir / 'environment.json'} is damaged (it has no list of starts): restore it from a copy."
            )
        return starts

    def note_start(self, device: str, parameters: int, total_steps: int, kernel: str | None = None) -> None:
        """Adds an entry for this start of the training to environment.json.

        The entry includes the command, the commit, the versions of packages, the machine, the arguments of this method and the
        number of `extensions`. If extensions.json is deleted later, this number shows that it is missing.

        Args:
          device: description of the devices that train.
          parameters: number of parameters.
          total_steps: number of steps of the whole training.
          kernel: the program that runs the layers; see `charlm.models.kernels`. None: nothing is trained.
        """
        starts: list[dict[str, Any]] = []
        try:
            starts = self.starts()
        except UserError:
            if self._metrics.exists():  # the run is resumed; training does not need the earlier entries
                warn(f"{self.workdir / 'environment.json'} is damaged or missing: its entries for earlier starts are lost.")
        starts.append(environment.entry(device, parameters, total_steps, kernel, len(self.extensions())))
        self._write("environment.json", {"starts": starts})

    def _noted_extensions(self) -> int:
        """The largest number of extensions in the entries of environment.json. 0 if environment.json can't be read."""
        with contextlib.suppress(UserError):
            numbers = [start.get("extensions", 0) for start in self.starts()]
            return max((number for number in numbers if isinstance(number, int)), default=0)
        return 0

    def started_by(self) -> str:
        """The command of the latest start, as ` (started by: COMMAND)` for a message.

        The result is empty if the command is not known, or if it is not a command of the program `train`.
        """
        try:
            command = self.starts()[-1]["command"]
            is_of_train = any(argument.startswith("--workdir") for argument in command)
        except (UserError, IndexError, KeyError, TypeError, AttributeError):
            return ""
        return f" (started by: {shlex.join(command)})" if is_of_train else ""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the directory for one training process; see `files.locked`.

        Raises:
          UserError: another process holds the lock.
        """
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(files.locked(self._lock, attempts=5))
            except BlockingIOError as error:
                raise UserError(
                    f"--workdir={self.workdir} is in use by {self._holder() or 'another process'}: "
                    "wait for it, stop it, or choose another directory."
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

    def _holder(self) -> str:
        """What the process that holds the lock wrote about itself. Empty if somebody has deleted the lock file."""
        with contextlib.suppress(OSError):
            return self._lock.read_text(encoding="utf-8", errors="replace").strip()
        return ""

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Replaces an OSError in the `with` block by a Broken error that says that the directory can't be written."""
        try:
            yield
        except OSError as error:
            raise Broken(
                f"{self.workdir} can't be written ({error.strerror or error}): "
                "fix this, and the same command resumes from the last checkpoint."
            ) from error

    def is_training(self) -> bool:
        """Whether a process is training this run now."""
        return files.is_locked(self._lock)

    def _text(self, name: str) -> str:
        path = self.workdir / name
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist: --workdir must be the directory of a run.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} can't be read: {error}.") from error

    def _json(self, name: str) -> dict[str, Any]:
        try:
            fields = opened(self._text(name))
            if not isinstance(fields, dict):
                raise ValueError("not an object")
            return fields
        except (ValueError, RecursionError) as error:
            hint = ", or delete the field 'seal' if you edited the file yourself" if "seal" in str(error) else ""
            raise UserError(f"{self.workdir / name} is damaged ({error}): restore it from a copy{hint}.") from error

    def _write(self, name: str, content: str | dict[str, Any]) -> None:
        """Creates or replaces a file. If the write fails, an existing file keeps its old content."""
        text = content if isinstance(content, str) else sealed(content, indent=1) + "\n"
        path = self.workdir / name
        path.parent.mkdir(exist_ok=True)
        files.write(path, text)
