"""Launches the trials of a config's sweep(), one run directory each, and goes on with those that were stopped.

    scripts/sweep.py --config=configs/FILE.py[:ARG] --root=runs/NAME [--parallel=2] [--only='model.hidden>=256'] [--dry_run]
    scripts/sweep.py ... --launcher=slurm --partition=gpu --time=240 --gpus=1 --cpus=4
    scripts/sweep.py ... --search=asha|tpe --trials=50

The same command again starts what is not done: new trials, and those that were stopped or killed, which resume bit for bit.
Done and diverged trials are left alone, failed ones too without --retry_failed. --config.KEY=VALUE holds for all trials.
Ctrl-C has each training save its state first; with SLURM it ends the watching only. --search draws from the config's space().
Exit status: 0 all done, 1 some diverged, failed or were stopped, 2 a mistake in the command, 130 or 143 stopped.
"""

import collections
import os
import sys
from collections.abc import Callable

from absl import flags

from charlm import cli, measures
from charlm.config import keys, load
from charlm.errors import UserError
from charlm.rundir.run import Run
from charlm.sweeps import launch, search, slurm, sweep

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "recipe or config file with a sweep(), with its argument if it takes one: NAME[:ARG] or FILE.py[:ARG]",
    required=True,
)
_ROOT = flags.DEFINE_string("root", None, "folder of the sweep: made, or gone on with if it is there", required=True)
_ONLY = flags.DEFINE_multi_string("only", [], "only trials for which this holds, such as model.hidden=512; may be repeated")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the trials, where each stands and its command, and start nothing")
_RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "go on with failed trials too")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "trials at once; locally they share the cores and GPUs evenly")
_LAUNCHER = flags.DEFINE_enum("launcher", "local", ("local", "slurm"), "processes of this machine, or jobs of SLURM")

_SEARCH = flags.DEFINE_enum("search", None, search.METHODS, "draw trials from the config's space() by this method of Optuna's")
_TRIALS = flags.DEFINE_integer("trials", 20, "of a search: how many, those of earlier starts included")
_PARTITION = flags.DEFINE_string("partition", None, "of SLURM")
_ACCOUNT = flags.DEFINE_string("account", None, "of SLURM")
_TIME = flags.DEFINE_integer(
    "time", 240, "of SLURM: minutes a job may run before it saves its state and is put into the queue again"
)
_GPUS = flags.DEFINE_integer("gpus", None, "of SLURM: GPUs a trial")
_NODES = flags.DEFINE_integer("nodes", 1, "of SLURM: machines a trial, with so many --tasks on each")
_CPUS = flags.DEFINE_integer("cpus", None, "of SLURM: CPUs a trial")
_TASKS = flags.DEFINE_integer(
    "tasks", 1, "of SLURM: processes on each node that train one trial together, each with its own CPUs"
)
_MEMORY = flags.DEFINE_integer("memory", None, "of SLURM: gigabytes a trial")

TRAIN = [sys.executable, "-P", "-m", "charlm", "train"]  # -P: a folder called charlm in the current one is not the package
Command = Callable[[sweep.Trial], list[str]]  # the training of a trial


def run() -> None:
    cli.run(main, keys.help_text)


def main(common: dict[str, str]) -> int:
    for flag in (_PARALLEL, _TRIALS, _TIME, _GPUS, _CPUS, _NODES, _TASKS, _MEMORY):
        if flag.value is not None and flag.value < 1:
            raise UserError(f"--{flag.name}={flag.value} is not right: it must be 1 or more.")
    if _LAUNCHER.value == "slurm" and not _DRY_RUN.value:
        slurm.check()
    if _LAUNCHER.value == "local" and _TASKS.value * _NODES.value > 1:
        raise UserError(
            f"--tasks={_TASKS.value} with --nodes={_NODES.value} is for --launcher=slurm: locally each trial is one process."
        )
    root = sweep.Root(_ROOT.value)

    def command_of(trial: sweep.Trial) -> list[str]:
        workdir = os.path.abspath(root.path / trial.name)  # a job begins in another directory
        together = ["--distributed"] if _TASKS.value * _NODES.value > 1 else []
        return [*TRAIN, f"--workdir={workdir}", *together, *sweep.flags_of(trial.config)]

    return _search(root, common, command_of) if _SEARCH.value else _sweep(root, common, command_of)


def _sweep(root: sweep.Root, common: dict[str, str], command_of: Command) -> int:
    trials = sweep.trials_of(_CONFIG.value, common)
    removed = root.check(_CONFIG.value, trials)
    trials = [trial for trial in trials if _is_chosen(trial)]
    if not trials:
        raise UserError(f"--only={_ONLY.value[-1]}: no trial of {_CONFIG.value} is like that.")
    standings = {trial.name: launch.standing_of(root.run(trial)) for trial in trials}
    left_alone = ("done", "diverged") if _RETRY_FAILED.value else ("done", "diverged", "failed")
    to_start = [trial for trial in trials if standings[trial.name].state not in left_alone]
    _announce(standings, removed)
    if _DRY_RUN.value:
        for trial in trials:
            print(f"{standings[trial.name].state:<10} {trial.name}\n           {' '.join(command_of(trial))}")
        return 0
    display = launch.Display(len(trials))
    with root.locked():
        root.record(_CONFIG.value, trials)
        for trial in trials:
            if trial not in to_start:
                display.known(trial, standings[trial.name])
        if _LAUNCHER.value == "slurm":
            stopped_by = _by_slurm(root, to_start, command_of, display)
        else:
            stopped_by = launch.local(root, iter(to_start), command_of, _places(), display)
    return _conclude({trial.name: launch.Standing("new") for trial in trials} | display.standings(), display, stopped_by)


def _search(root: sweep.Root, common: dict[str, str], command_of: Command) -> int:
    for flag in (_ONLY, _DRY_RUN, _RETRY_FAILED):
        if flag.value:
            raise UserError(f"--{flag.name} is for sweeps: a search chooses its trials as it goes.")
    if _LAUNCHER.value != "local":
        raise UserError(f"--search with --launcher={_LAUNCHER.value} is not possible: local would be right.")
    searched = search.Search(root, _CONFIG.value, common, _SEARCH.value, _TRIALS.value)
    root.check(_CONFIG.value, [])
    searched.check()
    print(f"searching {_CONFIG.value} with {_TRIALS.value} trials in {_ROOT.value}")
    display = launch.Display(_TRIALS.value)
    with root.locked():
        root.record(_CONFIG.value, [], search=searched.described())
        searched.open()
        stopped_by = launch.local(root, searched.trials(), command_of, _places(), display, searched.ended, searched.is_enough)
    standings = {name: launch.standing_of(Run(root.path / name)) for name in searched.tried()}
    standings |= {name: standings[name]._replace(state="pruned") for name in searched.pruned()}
    return _conclude(standings | display.standings(), display, stopped_by)


def _places() -> list[launch.Share]:
    return launch.shares(_PARALLEL.value, launch.cores_here(), launch.gpus_here())


def _by_slurm(root: sweep.Root, trials: list[sweep.Trial], command_of: Command, display: launch.Display) -> int:
    resources = slurm.Resources(
        partition=_PARTITION.value,
        account=_ACCOUNT.value,
        minutes=_TIME.value,
        gpus=_GPUS.value,
        cpus=_CPUS.value,
        memory_gb=_MEMORY.value,
        nodes=_NODES.value,
        tasks=_TASKS.value,
        at_once=_PARALLEL.value,
    )
    return slurm.launched(
        root, trials, command_of, resources, display, lambda jobs: root.record(_CONFIG.value, trials, jobs=jobs)
    )


def _is_chosen(trial: sweep.Trial) -> bool:
    flat = load.flatten(trial.config)
    conditions = [load.condition(text) for text in _ONLY.value]
    return all(holds(flat[keys.known(key)]) for key, holds in conditions)


def _announce(standings: dict[str, launch.Standing], removed: list[str]) -> None:
    words = _counted(standings, {"new": "new", "incomplete": "to resume"})
    print(f"{len(standings)} trials in {_ROOT.value}: {words}")
    for name in removed:
        print(f"no longer in the sweep, left as it is: {name}")
    for name, standing in standings.items():
        if standing.state in ("failed", "diverged"):
            print(f"{standing.state}: {name}: {standing.message}")


def _conclude(standings: dict[str, launch.Standing], display: launch.Display, stopped_by: int) -> int:
    """Says how it ended; returns the exit status."""
    if display.is_live:  # the table has gone
        for name, standing in standings.items():
            if standing.state in ("failed", "diverged", "stopped"):
                print(f"{standing.state}: {name}: {standing.message}")
    print(f"{_counted(standings, {'new': 'not started'})} of {len(standings)} trials.")
    done = {name: standing.best for name, standing in standings.items() if standing.state == "done" and standing.best}
    if done:
        name = min(done, key=lambda name: done[name]["nats"])
        print(f"best: {name}: {measures.best_in_words(done[name])}; scripts/compare.py {_ROOT.value} compares them.")
    if stopped_by:
        print("stopped: the same command goes on from there.")
        return 128 + stopped_by
    return 0 if {standing.state for standing in standings.values()} <= {"done", "pruned"} else 1


def _counted(standings: dict[str, launch.Standing], words: dict[str, str]) -> str:
    counts = collections.Counter(words.get(standing.state, standing.state) for standing in standings.values())
    return ", ".join(f"{number} {state}" for state, number in counts.items()) or "none"
