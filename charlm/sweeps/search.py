"""Searches a config's space() for the trial with the lowest validation loss (nats). Optuna proposes the trials. It also prunes
trials with a high loss, which means that it stops them early.

    asha  Trials are drawn at random. After 1, 3, 9, … evaluations only the best third of the trials continues (Li et al. 2020,
          "A System for Massively Parallel Hyperparameter Tuning").
    tpe   Tree-structured Parzen estimators propose trials (Bergstra et al. 2011, "Algorithms for Hyper-Parameter
          Optimization"). A trial is pruned if its nats are higher than the median of the nats that other trials had after
          the same number of evaluations.

Optuna calls a search a study. It saves the study in search.db in the folder of the search, so the same command continues the
search.
"""

import math
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from charlm.compare import reading
from charlm.config import keys, load
from charlm.errors import UserError
from charlm.sweeps import naming, sweep
from charlm.sweeps.status import TrialStatus

if TYPE_CHECKING:
    import optuna

METHODS = ("asha", "tpe")
MAX_REPEATS = 100  # a search ends after Optuna has proposed this many trials that were already tried
REDUCTION_FACTOR = 3  # asha continues one of three trials, and prunes the other two


class Search:
    """An Optuna study whose trials are run directories.

    `launch.run_local` runs the trials. It calls `should_stop` while a trial is running and `on_end` when the trial ends. These
    methods report the trial's losses to the study.
    """

    def __init__(self, root: sweep.Root, file_and_arg: str, common: Mapping[str, object], method: str, total: int):
        """Reads and checks the space. Writes no files.

        Args:
          root: folder of the search.
          file_and_arg: config file that defines `space()`.
          common: overrides of every trial.
          method: one of METHODS.
          total: number of trials, including trials of earlier launches of this search.

        Raises:
          UserError: `space()` is missing or wrong, or Optuna is not installed.
        """
        self._root, self._file, self._common, self._method, self._total = root, file_and_arg, common, method, total
        space = load.call(file_and_arg, "space")
        if not isinstance(space, Mapping) or not space:
            raise UserError(f"space() of {file_and_arg} must return a dict of key → range: see charlm/sweeps/sweep.py.")
        self._space: Mapping[str, sweep.Interval | sweep.Choice] = space
        example = sweep.sample(self._space, 1)[0]
        for key, values in self._space.items():  # checks both ends of each range, and each option of each choice
            for value in values.options if isinstance(values, sweep.Choice) else (values.low, values.high):
                self._base = sweep.make_trial(file_and_arg, common, {**example, key: value}).config
        try:
            import optuna
        except ImportError as error:
            raise UserError("--search needs Optuna: pip install optuna.") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._trials: dict[str, optuna.trial.Trial] = {}  # the running trials
        self._reported: dict[str, int] = {}  # name of the trial → number of evaluations reported to the study
        self._sizes: dict[str, int] = {}  # name of the trial → size of metrics.jsonl when it was last read

    def description(self) -> dict[str, Any]:
        """What sweep.json records about this search: its method, its space, and the other config keys with their values."""
        fixed = load.flatten(load.to_dict(self._base))
        fixed = {key: value for key, value in fixed.items() if key not in {*self._space, *keys.CHANGE_NO_RESULT}}
        return {"method": self._method, "space": {key: repr(values) for key, values in self._space.items()}, "config": fixed}

    def check(self) -> None:
        """Raises a UserError if the folder has a sweep, or a search with another method, space or config."""
        if not (self._root.path / "sweep.json").exists():
            return
        recorded, current = self._root.recorded("search"), self.description()
        if recorded is None or any(recorded.get(name) != current[name] for name in ("method", "space")):
            raise UserError(
                f"--root={self._root.path} holds a sweep, or a search with another method or space: choose another folder."
            )
        if different := load.differences(recorded["config"], current["config"]):
            listed = load.in_words(different)
            raise UserError(f"--root={self._root.path} holds a search with another config: {listed}; choose another folder.")

    def open(self) -> None:
        """Opens the study in search.db, or makes a new study."""
        samplers = {"asha": self._optuna.samplers.RandomSampler, "tpe": self._optuna.samplers.TPESampler}
        pruners = {
            "asha": lambda: self._optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION_FACTOR),
            "tpe": lambda: self._optuna.pruners.MedianPruner(n_startup_trials=5),
        }
        storage = f"sqlite:///{os.path.abspath(self._root.path / 'search.db')}"
        self._study = self._optuna.create_study(
            storage=storage, study_name="charlm", load_if_exists=True, direction="minimize", pruner=pruners[self._method]()
        )
        seed = len(self._study.get_trials(deepcopy=False))  # with a constant seed, every launch would propose the same trials
        self._study.sampler = samplers[self._method](seed=seed)

    def trials(self) -> Iterator[sweep.Trial]:
        """Yields the unfinished trials of earlier launches, and then new trials until the total number of trials is reached."""
        states = self._optuna.trial.TrialState
        for frozen in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if "overrides" in frozen.user_attrs:
                trial = self._trial_of(frozen.user_attrs["overrides"])
                self._track(self._optuna.trial.Trial(self._study, frozen._trial_id), trial)
                self._reported[trial.name] = len(frozen.intermediate_values)
                yield trial
        repeats = 0
        while len(tried := self.tried()) < self._total and repeats < MAX_REPEATS:
            proposed = self._study.ask()
            trial = self._trial_of({key: _suggest(proposed, key, values) for key, values in self._space.items()})
            if trial.name in tried:  # reports the known result to the study, and asks for another proposal
                repeats += 1
                value = tried[trial.name]
                self._study.tell(proposed, value, state=None if value is not None else states.FAIL)
                continue
            proposed.set_user_attr("overrides", trial.overrides)
            self._track(proposed, trial)
            yield trial

    def tried(self) -> dict[str, float | None]:
        """Name → validation nats of each trial that was started so far. The nats are None if the trial has no result yet."""
        return {name: frozen.value for name, frozen in self._by_name().items()}

    def pruned(self) -> set[str]:
        """The names of the pruned trials."""
        return {name for name, frozen in self._by_name().items() if frozen.state == self._optuna.trial.TrialState.PRUNED}

    def should_stop(self, trial: sweep.Trial) -> bool:
        """Reports new evaluations of a running trial to the study. Returns whether to prune the trial."""
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

    def on_end(self, trial: sweep.Trial, status: TrialStatus) -> None:
        """Reports the result of a trial to the study. A trial that was interrupted is not reported, because the next
        launch resumes the trial.
        """
        states = self._optuna.trial.TrialState
        proposed = self._trials.pop(trial.name)
        if status.state == "done" and status.best:
            # Report validation nats even if train.best is `train`, because pruning also uses validation nats.
            nats = reading.validation_nats(self._root.path / trial.name)
            self._study.tell(proposed, min(nats, default=status.best["nats"]), skip_if_finished=True)
        elif status.state == "pruned":
            self._study.tell(proposed, state=states.PRUNED, skip_if_finished=True)
            self._root.record(self._file, [], pruned=sorted(self.pruned()))  # so that the program compare shows `pruned`
        elif status.state == "diverged":  # report infinite nats, so that tpe avoids the values of this trial
            self._study.tell(proposed, math.inf, skip_if_finished=True)
        elif status.state == "failed":
            self._study.tell(proposed, state=states.FAIL, skip_if_finished=True)

    def _by_name(self) -> dict[str, "optuna.trial.FrozenTrial"]:
        trials = self._study.get_trials(deepcopy=False)
        return {naming.trial_name(trial.user_attrs["overrides"]): trial for trial in trials if "overrides" in trial.user_attrs}

    def _track(self, proposed: "optuna.trial.Trial", trial: sweep.Trial) -> None:
        """Adds a new trial to the running trials, and records the trial in sweep.json."""
        self._trials[trial.name] = proposed
        self._root.record(self._file, [trial])

    def _trial_of(self, overrides: sweep.Overrides) -> sweep.Trial:
        return sweep.make_trial(self._file, self._common, overrides)


def _suggest(trial: "optuna.trial.Trial", key: str, values: sweep.Interval | sweep.Choice) -> object:
    """The value that the study proposes for a key. It is rounded in the same way as in `sweep.sample`."""
    if isinstance(values, sweep.Choice):
        # Optuna saves the options as JSON, which has no tuples.
        saved = [str(option) if isinstance(option, list | tuple) else option for option in values.options]
        return values.options[saved.index(trial.suggest_categorical(key, saved))]
    if values.integer:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return values.rounded(trial.suggest_float(key, values.low, values.high, log=values.log))
