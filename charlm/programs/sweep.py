"""Trains the trials of a config's sweep(). Each trial has its own run directory.

    scripts/sweep.py --config=configs/FILE.py[:ARG] --root=runs/NAME [--parallel=2] [--only='model.hidden>=256'] [--dry_run]
    scripts/sweep.py ... --launcher=packed [--pack=8]
    scripts/sweep.py ... --launcher=slurm --partition=gpu --time=240 --gpus=1 --cpus=4
    scripts/sweep.py ... --search=asha|tpe --trials=50

The same command continues the sweep. It starts the trials that have not been started, and resumes stopped and killed trials. A
resumed trial gives, bit for bit, the result of an uninterrupted trial. Done and diverged trials are not run again. Failed
trials are resumed only with --retry_failed. --config.KEY=VALUE sets a key of all trials.

After Ctrl-C, each training saves its state, and the program ends. With SLURM, only the program ends, and the jobs continue.

With --launcher=packed, trials that differ only in their seeds, learning rates, schedules, weight decay, dropout or initial
scales are trained as one compiled program. --dry_run shows which trials these are.

With --search, Optuna draws the trials from the ranges that the config's space() returns. The config's sweep() is not used.

Exit status:

    0: all trials are done
    1: at least one trial diverged, failed or was stopped
    2: the command has a mistake
    130, 143: a signal stopped the program
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator

from absl import flags

from charlm import cli, progress
from charlm.config import help_keys, keys, load
from charlm.errors import UserError
from charlm.programs import model_flags
from charlm.rundir.run import Run
from charlm.sweeps import conclusion, launch, packed, search, slurm, sweep
from charlm.sweeps.display import Display
from charlm.sweeps.status import TrialStatus, read_status

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "recipe or config file with a sweep() or space(), as NAME or FILE.py; if the config "
    "takes an argument, NAME:ARG or FILE.py:ARG",
    required=True,
)
_ROOT = flags.DEFINE_string(
    "root", None, "folder of the sweep; if the folder has a sweep, the sweep is continued", required=True
)
_ONLY = flags.DEFINE_multi_string("only", [], "run only trials that meet this condition, such as model.hidden=512")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the state and the command of each trial, without starting any trial")
_RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "also resume failed trials")
_PARALLEL = flags.DEFINE_integer(
    "parallel",
    1,
    "number of trials that run at the same time. On this machine, each trial gets an equal part of the cores and GPUs",
)
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "local",
    ("local", "packed", "slurm"),
    "local: trials are processes on this machine; packed: each process on this machine trains several trials as one compiled "
    "program; slurm: trials are SLURM jobs",
)
_PACK = flags.DEFINE_integer("pack", None, "with --launcher=packed: maximum number of trials of a process (8)")

_SEARCH = flags.DEFINE_enum("search", None, search.METHODS, "search the config's space() with Optuna by this method")
_TRIALS = flags.DEFINE_integer("trials", 20, "with --search: number of trials, including the trials of earlier starts")
_PARTITION = flags.DEFINE_string("partition", None, "SLURM: partition of the cluster")
_ACCOUNT = flags.DEFINE_string("account", None, "SLURM: account to charge")
_TIME = flags.DEFINE_integer("time", 240, "SLURM: minutes that a job may run before it saves its state and is queued again")
_GPUS = flags.DEFINE_integer("gpus", None, "SLURM: number of GPUs that a trial uses on each node")
_NODES = flags.DEFINE_integer("nodes", 1, "SLURM: number of nodes for each trial; each node runs --tasks processes")
_CPUS = flags.DEFINE_integer("cpus", None, "SLURM: number of CPUs for each process")
_TASKS = flags.DEFINE_integer(
    "tasks", 1, "SLURM: number of processes on each node; all processes of a trial train one model together"
)
_MEMORY = flags.DEFINE_integer("memory", None, "SLURM: gigabytes of memory that a trial uses on each node")
_TRUST_CODE = model_flags.trust_code()

LISTED = 3  # the maximum number of trials that the message about equal configs lists
# With -P, Python does not import a folder named charlm from the current directory.
CHARLM = [sys.executable, "-P", "-m", "charlm"]
PACK = 8  # the default of --pack
CommandOf = Callable[[sweep.Trial], list[str]]  # returns the command that trains a trial


def run() -> None:
    """Runs the program with the flags of the command line."""
    cli.run(main, help_keys.help_text)


def main(common: dict[str, str]) -> int:
    """Runs the sweep or the search. Returns the exit status.

    Args:
      common: the overrides for all trials, as a dict from dotted keys to the values as text.
    """
    for flag in (_PARALLEL, _PACK, _TRIALS, _TIME, _GPUS, _CPUS, _NODES, _TASKS, _MEMORY):
        if flag.value is not None and flag.value < 1:
            raise UserError(f"--{flag.name}={flag.value}: must be 1 or more.")
    if _LAUNCHER.value == "slurm" and not _DRY_RUN.value:
        slurm.check()
    if _PACK.value is not None and _LAUNCHER.value != "packed":
        raise UserError(f"--pack={_PACK.value}: needs --launcher=packed, because only a pack trains several trials together.")
    if _LAUNCHER.value != "slurm" and _TASKS.value * _NODES.value > 1:
        raise UserError(
            f"--tasks={_TASKS.value} --nodes={_NODES.value}: needs --launcher=slurm, because a local trial runs in one process."
        )
    root = sweep.Root(_ROOT.value)

    def command_of(trial: sweep.Trial) -> list[str]:
        workdir = os.path.abspath(root.path / trial.name)  # a job may start in another directory
        distributed = ["--distributed"] if _TASKS.value * _NODES.value > 1 else []
        trust_code = ["--trust_code"] if _TRUST_CODE.value else []
        return [*CHARLM, "train", f"--workdir={workdir}", *distributed, *trust_code, *sweep.train_flags(trial.config)]

    return _search(root, common, command_of, _SEARCH.value) if _SEARCH.value else _sweep(root, common, command_of)


def _sweep(root: sweep.Root, common: dict[str, str], command_of: CommandOf) -> int:
    by_overrides = sweep.load_trials(_CONFIG.value, common)
    trials = root.matched(by_overrides)
    removed = root.check(_CONFIG.value, trials)
    renamed = {new.name: old.name for old, new in zip(by_overrides, trials, strict=True) if old.name != new.name}
    trials = [trial for trial in trials if _is_chosen(trial)]
    if not trials:
        conditions = " ".join(f"--only={condition}" for condition in _ONLY.value)
        words = "this condition" if len(_ONLY.value) == 1 else "all these conditions"
        raise UserError(f"{conditions}: no trial of {_CONFIG.value} meets {words}.")
    statuses = {trial.name: read_status(root.run(trial)) for trial in trials}
    skipped_states = ("done", "diverged") if _RETRY_FAILED.value else ("done", "diverged", "failed")
    to_start = [trial for trial in trials if statuses[trial.name].state not in skipped_states]
    for trial in to_start:
        if statuses[trial.name].state == "new":
            sweep.check_files(trial)
    _check_trust([root.run(trial) for trial in to_start])
    if _LAUNCHER.value == "slurm" and not _TRUST_CODE.value:
        for trial in to_start:
            if own := keys.own_cells(trial.config):
                raise UserError(
                    f"--launcher=slurm: a job may stop and resume, and a trial with model.cell={own[0]} resumes only with "
                    "--trust_code: add it if you trust the file."
                )
    _announce(statuses, removed)
    if same := [f"{renamed[name]} is {name}" for name in statuses if name in renamed]:
        more = f", and {len(same) - LISTED} more" if len(same) > LISTED else ""
        print(f"not new, because existing trials have the same configs: {', '.join(same[:LISTED])}{more}")
    division = packed.Division([], to_start, [])
    if _LAUNCHER.value == "packed":
        steps = {trial.name: root.run(trial).saved_step() for trial in to_start}
        division = packed.divide(to_start, steps, root.packs(), _PACK.value or PACK)
        for line in division.sentences():
            print(line)
        processes = len(division.packs) + len(division.alone)
        if 0 < processes < _PARALLEL.value:
            progress.warn(
                f"--parallel={_PARALLEL.value}: a part of the machine is not used, so --parallel={processes} is faster."
            )
    if _DRY_RUN.value:
        _print_commands(root, trials, statuses, division, command_of)
        return 0
    display = Display(len(trials))
    with root.locked():
        recorded = dict(enumerate(root.packs())) | {pack.number: pack.names for pack in division.packs}
        root.record(_CONFIG.value, trials, **({"packs": list(recorded.values())} if recorded else {}))
        for trial in trials:
            if trial not in to_start:
                display.set_silently(trial, statuses[trial.name])
        if _LAUNCHER.value == "slurm":
            stopped_by = _by_slurm(root, to_start, command_of, display)
        else:
            stopped_by = launch.run_local(root, iter(_jobs(root, division, command_of)), _slots(), display)
    return _conclude({trial.name: TrialStatus("new") for trial in trials} | display.statuses(), display, stopped_by)


def _search(root: sweep.Root, common: dict[str, str], command_of: CommandOf, method: str) -> int:
    for flag in (_ONLY, _DRY_RUN, _RETRY_FAILED):
        if flag.value:
            raise UserError(f"--{flag.name} is only for sweeps: leave out --{flag.name} or --search.")
    if _LAUNCHER.value != "local":
        raise UserError(f"--launcher={_LAUNCHER.value}: must be local with --search.")
    current_search = search.Search(root, _CONFIG.value, common, method, _TRIALS.value)
    root.check(_CONFIG.value, [])
    current_search.check()
    if (root.path / "sweep.json").exists():
        pruned = root.recorded("pruned") or []
        _check_trust([Run(root.path / name) for name in root.recorded("trials") if name not in pruned])
    print(f"searching {_CONFIG.value} with {progress.counted(_TRIALS.value, 'trial')} in {_ROOT.value}")
    display = Display(_TRIALS.value)
    with root.locked():
        root.record(_CONFIG.value, [], search=current_search.description())
        current_search.open()
        root.record(_CONFIG.value, [], pruned=sorted(current_search.pruned()))
        stopped_by = launch.run_local(
            root,
            (_job_of_trial(root, trial, command_of) for trial in current_search.trials()),
            _slots(),
            display,
            on_end=current_search.on_end,
            should_stop=current_search.should_stop,
        )
    statuses = {name: read_status(Run(root.path / name)) for name in current_search.tried()}
    statuses |= {name: statuses[name]._replace(state="pruned") for name in current_search.pruned()}
    return _conclude(statuses | display.statuses(), display, stopped_by)


def _check_trust(runs: Iterable[Run]) -> None:
    """Raises a UserError if one of these runs would be resumed, and its cell is in a file that the user does not trust."""
    with_own_cells = []
    for run in runs:
        with contextlib.suppress(UserError):  # the run does not exist yet; or it is damaged, and the training will report this
            if run.status()["state"] in ("incomplete", "failed") and keys.own_cells(run.config()):
                with_own_cells.append(run)
    if with_own_cells:
        from charlm.models.cells import own  # imports JAX, which takes a second

        for run in with_own_cells:
            own.trusted(run, _TRUST_CODE.value, f"--workdir={run.workdir}")


def _print_commands(
    root: sweep.Root,
    trials: Iterable[sweep.Trial],
    statuses: dict[str, TrialStatus],
    division: packed.Division,
    command_of: CommandOf,
) -> None:
    """Prints the state of each trial, and its command. Below the command of a pack, prints the trials of the pack."""
    in_packs = set()
    for pack in division.packs:
        print(f"pack {pack.number}: {shlex.join(_job_of_pack(root, pack).command)}")
        for trial in pack.trials:
            in_packs.add(trial.name)
            print(f"{statuses[trial.name].state:<10} {trial.name}")
    for trial in trials:
        if trial.name not in in_packs:
            print(f"{statuses[trial.name].state:<10} {trial.name}\n           {shlex.join(command_of(trial))}")


def _jobs(root: sweep.Root, division: packed.Division, command_of: CommandOf) -> Iterator[launch.Job]:
    for pack in division.packs:
        packed.write(root, pack)
        yield _job_of_pack(root, pack)
    for trial in division.alone:
        yield _job_of_trial(root, trial, command_of)


def _job_of_trial(root: sweep.Root, trial: sweep.Trial, command_of: CommandOf) -> launch.Job:
    return launch.Job((trial,), command_of(trial), root.log(trial))


def _job_of_pack(root: sweep.Root, pack: packed.Pack) -> launch.Job:
    file, trust_code = packed.file_of(root, pack), ["--trust_code"] if _TRUST_CODE.value else []
    return launch.Job(tuple(pack.trials), [*CHARLM, "train_pack", f"--pack={file}", *trust_code], file.with_suffix(".log"))


def _slots() -> list[launch.Slot]:
    return launch.divide_machine(_PARALLEL.value, launch.available_cores(), launch.available_gpus())


def _by_slurm(root: sweep.Root, trials: list[sweep.Trial], command_of: CommandOf, display: Display) -> int:
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
    return slurm.run_on_slurm(
        root, trials, command_of, resources, display, lambda jobs: root.record(_CONFIG.value, trials, jobs=jobs)
    )


def _is_chosen(trial: sweep.Trial) -> bool:
    flat = load.flatten(trial.config)
    conditions = [load.condition(text) for text in _ONLY.value]
    return all(holds(flat[keys.full_name(key)]) for key, holds in conditions)


def _announce(statuses: dict[str, TrialStatus], removed: list[str]) -> None:
    """Prints the number of trials in each state, the trials removed from the sweep, and why trials failed or diverged."""
    states = conclusion.count_states(statuses, incomplete="to resume")
    print(f"{progress.counted(len(statuses), 'trial')} in {_ROOT.value}: {states}")
    for name in removed:
        print(f"{name} is no longer in the sweep: its run directory is not changed")
    _print_reasons(statuses, ("failed", "diverged"))


def _conclude(statuses: dict[str, TrialStatus], display: Display, stopped_by: int) -> int:
    """Prints how the sweep ended. Returns the exit status."""
    if display.is_live:  # the live table did not show the reasons
        _print_reasons(statuses, ("failed", "diverged", "stopped"))
    print(f"{conclusion.count_states(statuses, new='not started')} of {progress.counted(len(statuses), 'trial')}.")
    if best := conclusion.best_in_words(statuses):
        print(f"best: {best}; compare all with: {cli.command('compare')} {_ROOT.value}")
    if stopped_by:
        print("The sweep was stopped: the same command resumes it.")
        return 128 + stopped_by
    return 0 if {status.state for status in statuses.values()} <= {"done", "pruned"} else 1


def _print_reasons(statuses: dict[str, TrialStatus], states: tuple[str, ...]) -> None:
    """Prints a line for each trial in one of these states. The line says why the trial is in this state, if this is known."""
    for name, status in statuses.items():
        if status.state in states:
            print(conclusion.ended_in_words(name, status))
