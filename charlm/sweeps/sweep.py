"""A sweep: a list of flat dicts of overrides, the names of its trials, and the folder that holds their runs.

A config file that can be swept has, beside its get_config,

    def sweep():
        return repeat(product({"model.hidden": [128, 256], "optim.learning_rate": [2e-3, 5e-3]}), seeds=[1, 2, 3])

and one that can be searched has `space`, which returns key → range, as `sample` takes it.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import os
import pathlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from charlm import files
from charlm.config import keys as config_keys
from charlm.config import load
from charlm.errors import UserError
from charlm.rundir import run as run_module

Overrides = dict[str, object]
Sweep = list[Overrides]
LONGEST_NAME = 100  # chars; file systems allow 255 bytes


class Choice(NamedTuple):
    """One of some values, each as likely."""

    options: tuple

    def draw(self, rng: random.Random) -> object:
        return self.options[int(rng.random() * len(self.options))]


class Interval(NamedTuple):
    """A number from low to high, both included; log: uniform in its logarithm; numbers that are no integers have 3 digits."""

    low: float
    high: float
    log: bool
    integer: bool

    def draw(self, rng: random.Random) -> float | int:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.integer and not self.log:
            return self.low + int(rng.random() * (self.high - self.low + 1))
        drawn = low + rng.random() * (high - low)
        drawn = math.exp(drawn) if self.log else drawn
        return round(drawn) if self.integer else self.rounded(drawn)

    def rounded(self, value: float) -> float:
        return min(max(float(f"{value:.3g}"), self.low), self.high)


def uniform(low: float, high: float) -> Interval:
    return _interval(low, high, log=False, integer=False)._replace(low=float(low), high=float(high))


def log_uniform(low: float, high: float) -> Interval:
    return _interval(low, high, log=True, integer=False)._replace(low=float(low), high=float(high))


def integers(low: int, high: int, log: bool = False) -> Interval:
    """Whole numbers, both ends included."""
    return _interval(low, high, log=log, integer=True)


def choice(*options: object) -> Choice:
    if not options:
        raise UserError("choice() has no options: give at least one.")
    return Choice(options)


def product(*parts: Mapping[str, Sequence] | Sweep) -> Sweep:
    """Every combination of the values of each key and of the parts; the last varies fastest.

    Args:
      parts: key → list of values, or sweeps.
    """
    return [_merged(combination) for combination in itertools.product(*_columns(parts))]


def zipped(*parts: Mapping[str, Sequence] | Sweep) -> Sweep:
    """The first of each, the second of each, and so on. Raises a UserError where they differ in length."""
    columns = _columns(parts)
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{'+'.join(column[0]) if column else 'a sweep'} has {len(column)}" for column in columns)
        raise UserError(f"zipped() needs equally many values of each: {lengths}.")
    return [_merged(combination) for combination in zip(*columns, strict=True)]


def chain(*sweeps: Sweep) -> Sweep:
    """One after the other."""
    return [overrides for sweep in sweeps for overrides in sweep]


def repeat(sweep: Mapping[str, Sequence] | Sweep, seeds: int | Sequence[int]) -> Sweep:
    """Each trial with each seed; a number n stands for the seeds 0 to n - 1."""
    return product(sweep, {"seed": list(range(seeds)) if isinstance(seeds, int) else seeds})


def sample(ranges: Mapping[str, Interval | Choice], n: int, seed: int = 0) -> Sweep:
    """n random trials, no two alike; the first of them stay the same where n grows.

    Raises:
      UserError: the ranges hold fewer than n different trials.
    """
    rng, drawn, misses = random.Random(seed), [], 0
    for key, values in ranges.items():
        if not isinstance(values, Interval | Choice):
            raise UserError(f"sample(): {key}={values!r} is no range: uniform, log_uniform, integers or choice would be right.")
    while len(drawn) < n:
        overrides = {key: values.draw(rng) for key, values in ranges.items()}
        if overrides not in drawn:
            drawn.append(overrides)
        elif (misses := misses + 1) > 1000 + 10 * n:
            raise UserError(f"sample(n={n}): these ranges hold only {len(drawn)} different trials: a smaller n would be right.")
    return drawn


class Trial(NamedTuple):
    """Attributes: name of its directory; overrides, typed; the whole config."""

    name: str
    overrides: Overrides
    config: ConfigDict


def trials_of(file_and_arg: str, common: Mapping[str, object]) -> list[Trial]:
    """The trials of a config file's `sweep()`, each checked.

    Args:
      common: overrides of every trial, which its name leaves out.

    Raises:
      UserError: there is no sweep, it is empty, two trials are alike, or an override is not right.
    """
    sweep = load.call(file_and_arg, "sweep")
    if not isinstance(sweep, list | tuple) or not all(isinstance(overrides, Mapping) for overrides in sweep):
        raise UserError(f"sweep() of {file_and_arg} returns no list of dicts of overrides: see charlm/sweep.py.")
    if not sweep:
        raise UserError(f"sweep() of {file_and_arg} yields no trials.")
    trials, numbers = [], {}
    for number, overrides in enumerate(sweep, start=1):
        try:
            trial = trial_of(file_and_arg, common, overrides)
        except UserError as error:
            raise UserError(f"trial {number} of {file_and_arg}: {error}") from error
        alike = numbers.setdefault(json.dumps(load.to_dict(trial.config), sort_keys=True), number)
        if alike != number:
            raise UserError(f"trials {alike} and {number} of {file_and_arg} are the same, {trial.name}: remove one of them.")
        trials.append(trial)
    return trials


def trial_of(file_and_arg: str, common: Mapping[str, object], overrides: Mapping[str, object]) -> Trial:
    """One trial, checked. Raises a UserError where an override is not right."""
    both = [key for key in overrides if key in common]
    if both:
        raise UserError(f"--config.{both[0]} is also what the sweep sets: leave it away, or edit the sweep.")
    config = load.load(file_and_arg, {**common, **overrides})
    flat = load.flatten(config)
    typed = {key: flat[key] for key in config_keys.KEYS if key in overrides}
    return Trial(name_of(typed), typed, config)


def name_of(overrides: Overrides) -> str:
    """The directory of a trial: `hidden=128,learning_rate=0.002,seed=1`.

    Keys stand in the order of charlm/config/keys.py, the seed last, by the shortest ending that no other key has. What no path
    should hold is replaced, and what is too long is cut; a hash then keeps the name unique.
    """
    keys = sorted((key for key in config_keys.KEYS if key in overrides), key=lambda key: key == "seed")
    values = {key: _written(overrides[key]) for key in keys}
    # What separates keys must not stand in a text, nor anything that a path had better not hold.
    unsafe = {key: r"[^A-Za-z0-9._-]" if isinstance(overrides[key], str) else r"[^A-Za-z0-9._+-]" for key in keys}
    safe = {key: re.sub(unsafe[key], "_", values[key]) for key in keys}
    name = ",".join(f"{config_keys.short(key)}={safe[key]}" for key in keys) or "base"
    if safe == values and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}-{digest}"


def flags_of(config: ConfigDict) -> list[str]:
    """The config as flags of scripts/train.py: what differs from the defaults.

    So a trial is what was checked, even if the config file has been edited since.
    """
    mine, defaults = load.flatten(config), load.flatten(config_keys.defaults())
    changed = [f"--config.{key}={value}" for key, value in mine.items() if value != defaults[key]]
    return [f"--config={load.RECIPES / 'base.py'}", *changed]


class Root:
    """The folder of a sweep: a run directory for each trial, logs/, and sweep.json, which says whose it is."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._record = self.path / "sweep.json"

    def run(self, trial: Trial) -> run_module.Run:
        return run_module.Run(self.path / trial.name)

    def log(self, trial: Trial) -> pathlib.Path:
        return self.path / "logs" / f"{trial.name}.log"

    def check(self, file_and_arg: str, trials: Sequence[Trial]) -> list[str]:
        """The names of trials that were in the sweep once and are no longer; nothing is written.

        Args:
          trials: of a sweep; none of a search, which makes them as it goes.

        Raises:
          UserError: the folder is a file, holds something else or another sweep, or a trial of it has another config.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--root={self.path} is a file: give a directory.")
        if not self._record.exists():
            names = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
            if names - {"logs", f"{self._record.name}.new"}:  # which a launcher leaves that was killed at once
                raise UserError(f"--root={self.path} is not empty and not the root of a sweep: choose another.")
            return []
        recorded = self._recorded()
        if recorded["config"] != _identity(file_and_arg):
            raise UserError(
                f"--root={self.path} holds a sweep of {recorded['config']}, not of {_identity(file_and_arg)}: choose another."
            )
        for trial in trials:
            try:
                there = self.run(trial).config()
            except UserError:  # none yet, or damaged: the trial itself will say so
                continue
            different = load.differences(load.to_dict(there), load.to_dict(trial.config))
            if different:
                listed = load.in_words(different)
                raise UserError(f"{self.path / trial.name} was made with another config: {listed}; choose another --root.")
        if recorded.get("search") and trials:
            raise UserError(f"--root={self.path} holds a search: go on with --search, or choose another.")
        now = {trial.name for trial in trials}
        return [name for name in recorded["trials"] if trials and name not in now and (self.path / name).exists()]

    def record(self, file_and_arg: str, trials: Sequence[Trial], **more: object) -> None:
        """Writes down whose folder this is and which trials are or were in it, and more by name."""
        recorded = self._recorded() if self._record.exists() else {"trials": {}}
        recorded |= {"config": _identity(file_and_arg), **more}
        recorded["trials"] |= {trial.name: trial.overrides for trial in trials}
        files.write(self._record, json.dumps(recorded, indent=1) + "\n")

    def recorded(self, name: str) -> object:
        """What `record` was given by that name, or None."""
        return self._recorded().get(name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it for one launcher. Raises a UserError where another one holds it."""
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--root={self.path} can't be written ({error.strerror}): choose one that can.") from error
        with (self.path / "logs" / "launcher.lock").open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"--root={self.path} is in use by another launch of the sweep: wait for it, or stop it."
                ) from error
            yield

    def _recorded(self) -> dict:
        try:
            recorded = json.loads(self._record.read_text(encoding="utf-8"))
            if not isinstance(recorded["trials"], dict) or not isinstance(recorded["config"], str):
                raise ValueError("no trials")
            return recorded
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._record} is damaged ({error}): restore it from a copy, or choose another --root."
            ) from error


def _interval(low: float, high: float, log: bool, integer: bool) -> Interval:
    numbers = all(isinstance(end, int if integer else int | float) for end in (low, high))
    if not (numbers and low < high and (low > 0 or not log)):
        wanted = "whole numbers, " * integer + "the first below the second" + ", both above 0" * log
        raise UserError(f"a range from {low!r} to {high!r} is not right: it must be two {wanted or 'numbers'}.")
    return Interval(low, high, log, integer)


def _columns(parts: Sequence[Mapping[str, Sequence] | Sweep]) -> list[Sweep]:
    """Each key's values as a sweep, and each part that is a sweep."""
    columns = []
    for part in parts:
        for key, values in part.items() if isinstance(part, Mapping) else ():
            if not isinstance(values, list | tuple | range):
                raise UserError(f"the sweep gives {key} the values {values!r}: a list of them would be right.")
            columns.append([{key: value} for value in values])
        if not isinstance(part, Mapping):
            columns.append(list(part))
    return columns


def _merged(parts: Sequence[Overrides]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        for key in part:
            if key in merged:
                raise UserError(f"the sweep sets {key} twice in one trial: once would be right.")
        merged |= part
    return merged


def _written(value: object) -> str:
    if isinstance(value, tuple | list):
        return "+".join(map(_written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _identity(file_and_arg: str) -> str:
    """A config file and its argument, wherever the repository stands."""
    file, arg = load.find(file_and_arg)
    return file.name + (f":{arg}" if arg else "")
