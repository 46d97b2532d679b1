"""Builds sweeps, names their trials, and manages the folder of a sweep.

A sweep is a list of trials. Each trial is a flat dict of overrides. A flat dict maps config keys to values, as in
`{"model.hidden": 128}`. For a sweep, a config file defines `get_config` and `sweep`:

    def sweep():
        return repeat(product({"model.hidden": [128, 256], "optim.learning_rate": [2e-3, 5e-3]}), seeds=[1, 2, 3])

For a search, a config file defines `get_config` and `space`. The function `space` returns a dict of key → range, like the
argument `ranges` of `sample`.
"""

import contextlib
import itertools
import json
import math
import os
import pathlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from charlm import files
from charlm.config import keys as config_keys
from charlm.config import load
from charlm.errors import UserError
from charlm.rundir import directory
from charlm.rundir import run as run_module
from charlm.sweeps import naming

Overrides = dict[str, object]
Sweep = list[Overrides]


# Do not rename Choice, Interval or their fields. sweep.json records each range of a search as the text of repr(range), which
# contains these names. A search that was started with the old names could not continue.


class Choice(NamedTuple):
    """A range that consists of separate options. All options are equally likely."""

    options: tuple

    def draw(self, rng: random.Random) -> object:
        """A random option."""
        return self.options[int(rng.random() * len(self.options))]


class Interval(NamedTuple):
    """A range of numbers from low to high, both included.

    Attributes:
      log: draw numbers whose logarithm is uniformly distributed.
      integer: draw integers. Without `integer`, numbers are rounded to 3 significant digits.
    """

    low: float
    high: float
    log: bool
    integer: bool

    def draw(self, rng: random.Random) -> float | int:
        """A random number in the range."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.integer and not self.log:
            return self.low + int(rng.random() * (self.high - self.low + 1))
        drawn = low + rng.random() * (high - low)
        drawn = math.exp(drawn) if self.log else drawn
        return round(drawn) if self.integer else self.rounded(drawn)

    def rounded(self, value: float) -> float:
        """The value with 3 significant digits, kept within the range."""
        return min(max(float(f"{value:.3g}"), self.low), self.high)


def uniform(low: float, high: float) -> Interval:
    """Uniformly distributed numbers from low to high. Raises a UserError if low is not below high."""
    return _interval(low, high, log=False, integer=False)._replace(low=float(low), high=float(high))


def log_uniform(low: float, high: float) -> Interval:
    """Numbers from low to high whose logarithm is uniformly distributed. Raises a UserError unless 0 < low < high."""
    return _interval(low, high, log=True, integer=False)._replace(low=float(low), high=float(high))


def integers(low: int, high: int, log: bool = False) -> Interval:
    """Integers from low to high, both included. With `log`, the logarithm of the numbers is uniform before rounding.

    Raises:
      UserError: low is not below high, low or high is not an integer, or `log` is set and low is not positive.
    """
    return _interval(low, high, log=log, integer=True)


def choice(*options: object) -> Choice:
    """One of the options. All options are equally likely. Raises a UserError if no option is given."""
    if not options:
        raise UserError("choice() has no options: give at least one.")
    return Choice(options)


def product(*parts: Mapping[str, Sequence] | Sweep) -> Sweep:
    """The sweep over all combinations of values. The last key varies fastest.

    Args:
      parts: dicts of key → list of values, or sweeps. Each trial of a sweep is combined with all values of the other parts.

    Raises:
      UserError: a key occurs twice, or its values are not a list.
    """
    return [_merged(combination) for combination in itertools.product(*_columns(parts))]


def zipped(*parts: Mapping[str, Sequence] | Sweep) -> Sweep:
    """The sweep whose first trial has the first value of each key, whose second trial has the second value, and so on.

    Args:
      parts: dicts of key → list of values, or sweeps. The trials of a sweep are used in order, like the values of a key.

    Raises:
      UserError: the lists differ in length, a key occurs twice, or its values are not a list.
    """
    columns = _columns(parts)
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{'+'.join(column[0]) if column else 'a sweep'} has {len(column)}" for column in columns)
        raise UserError(f"zipped() needs the same number of values for each key: {lengths}.")
    return [_merged(combination) for combination in zip(*columns, strict=True)]


def chain(*sweeps: Sweep) -> Sweep:
    """The trials of all sweeps, in the order of the sweeps."""
    return [overrides for sweep in sweeps for overrides in sweep]


def repeat(sweep: Mapping[str, Sequence] | Sweep, seeds: int | Sequence[int]) -> Sweep:
    """The sweep that runs each trial with each seed. An integer n means the seeds 0 to n - 1."""
    return product(sweep, {"seed": list(range(seeds)) if isinstance(seeds, int) else seeds})


def sample(ranges: Mapping[str, Interval | Choice], n: int, seed: int = 0) -> Sweep:
    """A sweep of n different random trials. A larger n gives the same trials first, and then more trials.

    Args:
      ranges: key → range made by uniform, log_uniform, integers or choice.
      n: number of trials.
      seed: seed of the random numbers.

    Raises:
      UserError: a value of `ranges` is not a range, or the ranges have fewer than n different trials.
    """
    rng, repeats = random.Random(seed), 0
    drawn: Sweep = []
    for key, values in ranges.items():
        if not isinstance(values, Interval | Choice):
            raise UserError(f"sample(): {key}={values!r}: must be a range made by uniform, log_uniform, integers or choice.")
    while len(drawn) < n:
        overrides = {key: values.draw(rng) for key, values in ranges.items()}
        if overrides not in drawn:
            drawn.append(overrides)
        elif (repeats := repeats + 1) > 1000 + 10 * n:
            raise UserError(f"sample(n={n}): these ranges have only {len(drawn)} different trials: choose a smaller n.")
    return drawn


class Trial(NamedTuple):
    """One trial of a sweep or a search.

    Attributes:
      name: name of the run directory.
      overrides: dict of config key → value. The value has the type of the key.
      config: the complete config.
    """

    name: str
    overrides: Overrides
    config: ConfigDict


def load_trials(file_and_arg: str, common: Mapping[str, object]) -> list[Trial]:
    """The checked trials of a config file's `sweep()`.

    Args:
      file_and_arg: FILE.py or FILE.py:ARG.
      common: overrides that every trial gets. The names of the trials do not include these overrides.

    Raises:
      UserError: the file defines no sweep, the sweep is empty, two trials are the same, or an override is wrong.
    """
    sweep = load.call(file_and_arg, "sweep")
    if not isinstance(sweep, list | tuple) or not all(isinstance(overrides, Mapping) for overrides in sweep):
        raise UserError(f"sweep() of {file_and_arg} must return a list of dicts of overrides: see charlm/sweeps/sweep.py.")
    if not sweep:
        raise UserError(f"sweep() of {file_and_arg} returns an empty list: give at least one trial.")
    trials: list[Trial] = []
    numbers: dict[str, int] = {}  # config → number of the first trial that has it
    for number, overrides in enumerate(sweep, start=1):
        try:
            trial = make_trial(file_and_arg, common, overrides)
        except UserError as error:
            raise UserError(f"trial {number} of {file_and_arg}: {error}") from error
        first = numbers.setdefault(json.dumps(load.to_dict(trial.config), sort_keys=True), number)
        if first != number:
            raise UserError(f"trials {first} and {number} of {file_and_arg} are the same, {trial.name}: remove one of them.")
        trials.append(trial)
    return trials


def make_trial(file_and_arg: str, common: Mapping[str, object], overrides: Mapping[str, object]) -> Trial:
    """The checked trial with these overrides. Raises a UserError if an override is wrong.

    `load_trials` describes the other arguments.
    """
    duplicates = [key for key in overrides if key in common]
    if duplicates:
        raise UserError(f"--config.{duplicates[0]}: the sweep sets this key too; leave out the flag, or edit the sweep.")
    config = load.load(file_and_arg, {**common, **overrides})
    flat = load.flatten(config)
    typed = {key: flat[key] for key in config_keys.KEYS if key in overrides}
    return Trial(naming.trial_name(typed), typed, config)


def check_files(trial: Trial) -> None:
    """Raises a UserError if a text, a file of a cell or a parent run that a new trial needs does not exist."""
    values = load.flatten(trial.config)
    for name in config_keys.TEXT_PATHS:
        if values[name] and not os.path.exists(str(values[name])):
            raise UserError(f"trial {trial.name}: {name}={values[name]}: no such file or folder.")
    for cell in config_keys.own_cells(trial.config):
        if not os.path.isfile(cell.rpartition(":")[0]):
            raise UserError(f"trial {trial.name}: model.cell={cell}: no such file.")
    for name in config_keys.RUN_PATHS:
        if values[name]:
            directory.run_and_checkpoint(str(values[name]), f"trial {trial.name}: {name}={values[name]}")


def train_flags(config: ConfigDict) -> list[str]:
    """Flags of the program `train` for this config: the base recipe, and every key that differs from its default.

    The flags do not name the config file of the sweep. If that file changes later, a trial that is
    already checked stays the same.
    """
    values, defaults = load.flatten(config), load.flatten(config_keys.defaults())
    changed = [f"--config.{key}={value}" for key, value in values.items() if value != defaults[key]]
    return [f"--config={load.RECIPES / 'base.py'}", *changed]


class Root:
    """The folder of a sweep or a search. It contains a run directory for each trial, logs/ and sweep.json.

    sweep.json records the config file, the trials, and a digest of each trial's config. For a search, it also records the
    method, the ranges of the space, and the names of the pruned trials. For packs, it records the names of their trials.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._record_file = self.path / "sweep.json"

    def run(self, trial: Trial) -> run_module.Run:
        """The run directory of a trial."""
        return run_module.Run(self.path / trial.name)

    def log(self, trial: Trial) -> pathlib.Path:
        """The file with the output of a trial."""
        return self.path / "logs" / f"{trial.name}.log"

    def matched(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials, changed so that a trial continues a run that the folder already has. Writes nothing.

        The name of a trial lists the swept keys. If a key is added to a sweep, the trials with the key's default therefore get
        other names than before, but their configs stay the same. Such a trial gets the name of the run that began with its
        config. A SLURM job that has not begun its run counts as a run. If the config of the run was changed later, for example
        by `train.py --extend`, the trial also gets the config of the run.
        """
        if not self._record_file.exists():
            return list(trials)
        new_names = naming.match(
            {trial.name: naming.digest(load.to_dict(trial.config)) for trial in trials},
            self._existing({trial.name for trial in trials}),
        )
        return [self._with_later_config(trial._replace(name=new_names[trial.name])) for trial in trials]

    def _with_later_config(self, trial: Trial) -> Trial:
        """The trial with the config of its run, if this config was changed after the run began, as by `train.py --extend`."""
        with contextlib.suppress(UserError):  # the run does not exist yet, or it is damaged
            run = self.run(trial)
            if run.extensions() and not load.differences(run.first_config_fields(), load.to_dict(trial.config)):
                return trial._replace(config=run.config())
        return trial

    def _existing(self, names: set[str]) -> dict[str, str | None]:
        """Name → digest of the config, for the runs of recorded trials and of the trials `names`. Done runs come first.

        The digest is None if the run's config is missing or damaged.
        """
        recorded = self._read_record()
        jobs, digests = recorded.get("jobs") or {}, recorded.get("configs") or {}
        done: dict[str, str | None] = {}
        others: dict[str, str | None] = {}
        for name in dict.fromkeys([*recorded["trials"], *sorted(names)]):
            run = run_module.Run(self.path / name)
            if run.workdir.exists():
                digest, state = None, None
                with contextlib.suppress(UserError):  # a run that has just begun has no config or status yet
                    digest = naming.digest(run.first_config_fields())
                    state = run.status()["state"]
                (done if state == "done" else others)[name] = digest
            elif name in jobs:
                others[name] = digests.get(name)
        return done | others

    def check(self, file_and_arg: str, trials: Sequence[Trial]) -> list[str]:
        """Checks that the folder is new or belongs to this sweep. Writes nothing.

        Args:
          file_and_arg: config file of the sweep or search.
          trials: trials of the sweep; empty for a search.

        Returns:
          The names of trials that have a run in the folder but are no longer in the sweep.

        Raises:
          UserError: the folder is a file, holds other files or another sweep, or has a trial with another config.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--root={self.path} is a file: give a directory.")
        if not self._record_file.exists():
            names = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
            if names - {"logs", f"{self._record_file.name}.new"}:  # a launcher that was killed early leaves these two names
                raise UserError(f"--root={self.path} is not empty and not the folder of a sweep: choose another folder.")
            return []
        recorded = self._read_record()
        if recorded["config"] != _identity(file_and_arg):
            raise UserError(
                f"--root={self.path} holds a sweep of {recorded['config']}, not of {_identity(file_and_arg)}: "
                "choose another folder."
            )
        for trial in trials:
            try:
                existing = self.run(trial).config()
            except UserError:  # the run does not exist yet, or it is damaged; the training will report the damage
                continue
            different = load.differences(load.to_dict(existing), load.to_dict(trial.config))
            if different:
                listed = load.in_words(different)
                raise UserError(f"{self.path / trial.name} was made with another config: {listed}; choose another --root.")
        if recorded.get("search") and trials:
            raise UserError(f"--root={self.path} holds a search: continue it with --search, or choose another folder.")
        names = {trial.name for trial in trials}
        return [name for name in recorded["trials"] if trials and name not in names and (self.path / name).exists()]

    def record(self, file_and_arg: str, trials: Sequence[Trial], **more: object) -> None:
        """Adds these trials to sweep.json. Also writes the name of the config file and the fields in `more`."""
        recorded = self._read_record() if self._record_file.exists() else {"trials": {}}
        recorded |= {"config": _identity(file_and_arg), **more}
        recorded["trials"] |= {trial.name: trial.overrides for trial in trials}
        digests = {trial.name: naming.digest(load.to_dict(trial.config)) for trial in trials}
        recorded["configs"] = (recorded.get("configs") or {}) | digests
        files.write(self._record_file, json.dumps(recorded, indent=1) + "\n")

    def recorded(self, name: str) -> Any:
        """The value of the field `name` in sweep.json; None if sweep.json has no such field."""
        return self._read_record().get(name)

    def packs(self) -> list[list[str]]:
        """The names of the trials of each pack that sweep.json records; see the module `packed`."""
        return (self.recorded("packs") or []) if self._record_file.exists() else []

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, and locks the folder for one launcher.

        Raises:
          UserError: another launcher holds the lock, or the folder can't be made.
        """
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--root={self.path} can't be written ({error.strerror}): choose another folder.") from error
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.locked(self.path / "logs" / "launcher.lock"))
            except BlockingIOError as error:
                raise UserError(f"--root={self.path} is in use by another launcher: wait for it, or stop it.") from error
            yield

    def _read_record(self) -> dict[str, Any]:
        try:
            recorded = json.loads(self._record_file.read_text(encoding="utf-8"))
            if not isinstance(recorded["trials"], dict) or not isinstance(recorded["config"], str):
                raise ValueError("it has no trials and config")
            return recorded
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._record_file} is damaged ({error}): restore it from a copy, or choose another --root."
            ) from error


def _interval(low: float, high: float, log: bool, integer: bool) -> Interval:
    are_numbers = all(isinstance(end, int if integer else int | float) for end in (low, high))
    if not (are_numbers and low < high and (low > 0 or not log)):
        rule = f"two {'integers' if integer else 'numbers'}, the first below the second" + ", both above 0" * log
        raise UserError(f"a range from {low!r} to {high!r}: must be {rule}.")
    return Interval(low, high, log, integer)


def _columns(parts: Sequence[Mapping[str, Sequence] | Sweep]) -> list[Sweep]:
    """Turns each key of a dict into a sweep over the values of this key. A part that is a sweep stays unchanged."""
    columns: list[Sweep] = []
    for part in parts:
        for key, values in part.items() if isinstance(part, Mapping) else ():
            if not isinstance(values, list | tuple | range):
                raise UserError(f"a sweep with {key}={values!r}: must be a list of values.")
            columns.append([{key: value} for value in values])
        if not isinstance(part, Mapping):
            columns.append(list(part))
    return columns


def _merged(parts: Sequence[Overrides]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        for key in part:
            if key in merged:
                raise UserError(f"the sweep sets {key} twice in one trial: set it once.")
        merged |= part
    return merged


def _identity(file_and_arg: str) -> str:
    """The name of the config file and its argument, without the folder, so that the repository can be moved."""
    file, arg = load.find(file_and_arg)
    return file.name + (f":{arg}" if arg else "")
