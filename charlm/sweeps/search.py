"""Searching a config's space for low validation nats with Optuna: what to try next, and which trials to end early.

    asha  random trials; of those with 1, 3, 9, … evaluations the best third goes on (Li et al. 2020, "A system for massively
          parallel hyperparameter tuning")
    tpe   tree-structured Parzen estimators propose (Bergstra et al. 2011); worse than the median at an evaluation ends a trial

The study is kept in search.db beside the runs, so that a search is gone on with by the same command.
"""

import math
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from charlm.compare import reading
from charlm.config import keys, load
from charlm.errors import UserError
from charlm.sweeps import launch, sweep

if TYPE_CHECKING:
    import optuna

METHODS = ("asha", "tpe")
MOST_MISSES = 100  # proposals of what was tried already, before a search ends
REDUCTION = 3  # of asha: one in so many goes on


class Search:
    """A study of Optuna's over run directories: yields trials, watches them, and notes how they ended."""

    def __init__(self, root: sweep.Root, file_and_arg: str, common: Mapping[str, object], method: str, number: int):
        """Reads the space; nothing is written.

        Args:
          common: overrides of every trial. number: of trials in all, those of earlier starts included.

        Raises:
          UserError: Optuna is not installed, the config has no fit space(), or the folder holds a search of another one.
        """
        self._root, self._file, self._common, self._method, self._number = root, file_and_arg, common, method, number
        self._space = load.call(file_and_arg, "space")
        if not isinstance(self._space, Mapping) or not self._space:
            raise UserError(f"space() of {file_and_arg} returns no dict of ranges: see charlm/sweep.py.")
        one = sweep.sample(self._space, 1)[0]
        for key, values in self._space.items():  # before anything is written: both ends of a range, each option of a choice
            for value in values.options if isinstance(values, sweep.Choice) else (values.low, values.high):
                self._base = sweep.trial_of(file_and_arg, common, {**one, key: value}).config
        try:
            import optuna
        except ImportError as error:
            raise UserError("--search needs Optuna: pip install -e '.[search]' installs it.") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._trials: dict[str, optuna.trial.Trial] = {}
        self._reported: dict[str, int] = {}
        self._sizes: dict[str, int] = {}  # of metrics.jsonl, when it was read last

    def described(self) -> dict[str, object]:
        """What makes it this search and no other, for the root's record."""
        fixed = load.flatten(load.to_dict(self._base))
        fixed = {key: value for key, value in fixed.items() if key not in {*self._space, *keys.CHANGE_NO_RESULT}}
        return {"method": self._method, "space": {key: repr(values) for key, values in self._space.items()}, "config": fixed}

    def check(self) -> None:
        """Raises a UserError where the root holds another search."""
        if not (self._root.path / "sweep.json").exists():
            return
        then, now = self._root.recorded("search"), self.described()
        if then is None or any(then.get(name) != now[name] for name in ("method", "space")):
            raise UserError(f"--root={self._root.path} holds a sweep, or a search of another kind or space: choose another.")
        if different := load.differences(then["config"], now["config"]):
            listed = load.in_words(different)
            raise UserError(f"--root={self._root.path} holds a search with another config: {listed}; choose another.")

    def open(self) -> None:
        """Opens the study, or makes it."""
        samplers = {"asha": self._optuna.samplers.RandomSampler, "tpe": self._optuna.samplers.TPESampler}
        pruners = {
            "asha": lambda: self._optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
            "tpe": lambda: self._optuna.pruners.MedianPruner(n_startup_trials=5),
        }
        storage = f"sqlite:///{os.path.abspath(self._root.path / 'search.db')}"
        self._study = self._optuna.create_study(
            storage=storage, study_name="charlm", load_if_exists=True, direction="minimize", pruner=pruners[self._method]()
        )
        seed = len(self._study.get_trials(deepcopy=False))  # else each start would propose the same
        self._study.sampler = samplers[self._method](seed=seed)

    def trials(self) -> Iterator[sweep.Trial]:
        """First those that an earlier start left unfinished, then new ones up to the number asked for."""
        states = self._optuna.trial.TrialState
        for frozen in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if "overrides" in frozen.user_attrs:
                trial = self._trial_of(frozen.user_attrs["overrides"])
                self._note(self._optuna.trial.Trial(self._study, frozen._trial_id), trial)
                self._reported[trial.name] = len(frozen.intermediate_values)
                yield trial
        misses = 0
        while len(tried := self.tried()) < self._number and misses < MOST_MISSES:
            proposed = self._study.ask()
            trial = self._trial_of({key: _suggested(proposed, key, values) for key, values in self._space.items()})
            if trial.name in tried:  # small spaces are soon tried; the study learns what came of it, where that is known
                misses += 1
                value = tried[trial.name]
                self._study.tell(proposed, value, state=None if value is not None else states.FAIL)
                continue
            proposed.set_user_attr("overrides", trial.overrides)
            self._note(proposed, trial)
            yield trial

    def tried(self) -> dict[str, float | None]:
        """Name of each trial so far → its nats, None where there are none yet."""
        return {name: frozen.value for name, frozen in self._by_name().items()}

    def pruned(self) -> set[str]:
        """Names of the trials that ended early."""
        return {name for name, frozen in self._by_name().items() if frozen.state == self._optuna.trial.TrialState.PRUNED}

    def is_enough(self, trial: sweep.Trial) -> bool:
        """Tells the study of new evaluations; whether the trial may end here."""
        proposed, metrics = self._trials[trial.name], self._root.path / trial.name / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        if self._sizes.get(trial.name) == size:
            return False
        self._sizes[trial.name] = size
        nats = reading.validation_nats(self._root.path / trial.name)
        for number in range(self._reported.get(trial.name, 0), len(nats)):
            proposed.report(nats[number], number + 1)
        is_new = len(nats) > self._reported.get(trial.name, 0)
        self._reported[trial.name] = len(nats)
        return is_new and proposed.should_prune()

    def ended(self, trial: sweep.Trial, standing: launch.Standing) -> None:
        """Tells the study how a trial ended; one that was stopped goes on at the next start."""
        states = self._optuna.trial.TrialState
        proposed = self._trials.pop(trial.name)
        if standing.state == "done" and standing.best:
            nats = reading.validation_nats(self._root.path / trial.name)  # as pruning, also where train.best is train
            self._study.tell(proposed, min(nats, default=standing.best["nats"]), skip_if_finished=True)
        elif standing.state == "pruned":
            self._study.tell(proposed, state=states.PRUNED, skip_if_finished=True)
        elif standing.state == "diverged":  # so that there it looks no more
            self._study.tell(proposed, math.inf, skip_if_finished=True)
        elif standing.state == "failed":
            self._study.tell(proposed, state=states.FAIL, skip_if_finished=True)

    def _by_name(self) -> dict[str, "optuna.trial.FrozenTrial"]:
        trials = self._study.get_trials(deepcopy=False)
        return {sweep.name_of(trial.user_attrs["overrides"]): trial for trial in trials if "overrides" in trial.user_attrs}

    def _note(self, proposed: "optuna.trial.Trial", trial: sweep.Trial) -> None:
        self._trials[trial.name] = proposed
        self._root.record(self._file, [trial])

    def _trial_of(self, overrides: sweep.Overrides) -> sweep.Trial:
        return sweep.trial_of(self._file, self._common, overrides)


def _suggested(trial: "optuna.trial.Trial", key: str, values: sweep.Interval | sweep.Choice) -> object:
    """A value of a range, numbers rounded as `sweep.sample` does."""
    if isinstance(values, sweep.Choice):
        return trial.suggest_categorical(key, values.options)
    if values.integer:
        return trial.suggest_int(key, values.low, values.high, log=values.log)
    return values.rounded(trial.suggest_float(key, values.low, values.high, log=values.log))
