"""Submits the trials of a sweep as SLURM jobs through submitit, and shows the status of the jobs.

The status of a job is read from SLURM's queue and from the run directory. The cluster therefore needs no SLURM accounting.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from charlm.errors import Failure, UserError
from charlm.sweeps import launch, sweep
from charlm.sweeps.display import Display
from charlm.sweeps.status import FINAL_STATES, TrialStatus, failure_message, read_status

POLL_SECONDS = 2.0
MAX_UNANSWERED = 30  # consecutive failed queries of SLURM
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "RESIZING")
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")
MAX_REQUEUES = 1000  # how many times a job that reaches its time limit may be requeued; no training needs so many times
KILL_SECONDS = 600  # longer than SLURM waits between SIGTERM and SIGKILL
SAVE_SECONDS = 90  # a job gets a signal to save its state this many seconds before its time limit


@dataclasses.dataclass(frozen=True)
class Resources:
    """The resources that each job requests. If a value is None, the cluster's default is used.

    Attributes:
      partition: SLURM partition.
      account: SLURM account.
      minutes: time limit of a job. Shortly before the limit, the training saves its state, and SLURM requeues the job.
      gpus: number of GPUs on each node.
      cpus: number of CPUs for each process.
      memory_gb: memory in GB.
      nodes: number of nodes.
      tasks: number of processes (SLURM calls them tasks) on each node. All processes of a job train one trial together.
      at_once: maximum number of jobs that run at the same time.
    """

    partition: str | None
    account: str | None
    minutes: int
    gpus: int | None
    cpus: int | None
    memory_gb: int | None
    nodes: int
    tasks: int
    at_once: int

    def parameters(self, name: str) -> dict[str, object]:
        """The arguments of submitit's `update_parameters`. `name` is the name of the jobs."""
        parameters = {
            "slurm_job_name": name,
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "timeout_min": self.minutes,
            "slurm_gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory_gb,
            "nodes": self.nodes,
            "tasks_per_node": self.tasks,
            "slurm_srun_args": [f"--cpus-per-task={self.cpus}"] if self.cpus else None,  # srun ignores sbatch's value
            "slurm_additional_parameters": {"requeue": True},
            "slurm_array_parallelism": self.at_once,
            "slurm_signal_delay_s": min(SAVE_SECONDS, self.minutes * 60 // 3),
            "stderr_to_stdout": True,
        }
        return {key: value for key, value in parameters.items() if value is not None}


class Training:
    """The function that submitit calls in a job. The function trains one trial.

    If SLURM is about to preempt the job, or if the time limit is near, the training saves its state and the job is requeued.
    """

    def __init__(self, command: list[str], log: str):
        """`command` starts the training. `log` is the absolute path of the file for the output of the training."""
        self._command, self._log = command, log
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Trains and returns the exit status. If the training fails, raises SystemExit with the exit status."""
        with open(self._log, "a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(self._command)}  # job {os.environ.get('SLURM_JOB_ID')}\n")
            log.flush()
            # SLURM sends SIGUSR2 to all processes of the job. The training ignores SIGUSR2 and gets SIGTERM from `checkpoint`.
            previous_handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            process = self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
            signal.signal(signal.SIGUSR2, previous_handler)
        code = process.wait()
        if code in launch.STOPPED_CODES and self._process is not None:
            # SLURM has sent SIGTERM, because SLURM cancels or preempts the job. SLURM does not requeue a job that exits by
            # itself, so wait until SLURM sends SIGKILL.
            time.sleep(KILL_SECONDS)
        if code not in (0, *launch.STOPPED_CODES):
            raise SystemExit(code)  # so that SLURM reports the job as failed
        return code

    def checkpoint(self) -> Any:
        """Stops the training. Returns the function for the requeued job. Submitit calls this method in a signal handler."""
        import submitit

        process, self._process = self._process, None
        # SLURM may send the signal twice. A second SIGTERM would end the training before the state is saved.
        if process is not None:
            process.terminate()
            # process.wait() would deadlock here. This handler has interrupted the process.wait() of `__call__`, which holds the
            # lock of `process`.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Training(self._command, self._log))


def check() -> None:
    """Raises a UserError if this machine can't submit jobs to SLURM."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "--launcher=slurm: this machine has no sbatch; launch from a node of the cluster, or use --launcher=local."
        )


def run_on_slurm(
    root: sweep.Root,
    trials: Sequence[sweep.Trial],
    command_of: Callable[[sweep.Trial], list[str]],
    resources: Resources,
    display: Display,
    record: Callable[[dict[str, str]], None],
) -> int:
    """Submits the trials as one job array, and shows the status of all trials until they end.

    Trials that are already in the queue are not submitted again. After a signal, this function returns and the jobs continue.

    Args:
      root: folder of the sweep.
      trials: all trials to run or to watch.
      command_of: a function that takes a trial and returns the command that trains this trial.
      resources: resources of each job.
      display: shows the trials.
      record: a function that is called after a submission. Its argument is a dict from trial names to job ids. It includes
        the jobs of earlier launches.

    Returns:
      The number of the received signal, or 0 if all trials have ended.

    Raises:
      Failure: SLURM refuses the jobs, or does not answer.
    """
    with _interrupted() as interrupted:
        jobs = dict(root.recorded("jobs") or {})
        queue = _queue()
        new = [trial for trial in trials if queue.get(jobs.get(trial.name, "")) not in (*WAITING, *RUNNING)]
        if new:
            jobs |= _submit(root, new, command_of, resources)
            record(jobs)
            ids = " ".join(sorted({jobs[trial.name].split("_")[0] for trial in new}))
            print(f"submitted as job {ids}; scancel {ids} stops {'them' if len(new) > 1 else 'it'}.", flush=True)
        unfinished = _watch(root, trials, jobs, display, interrupted)
    if interrupted:
        ids = " ".join(jobs[trial.name] for trial in unfinished)
        print(f"the jobs continue: the same command watches them again; scancel {ids} stops them.")
        return interrupted[0]
    return 0


def _watch(
    root: sweep.Root, trials: Sequence[sweep.Trial], jobs: dict[str, str], display: Display, interrupted: list[int]
) -> list[sweep.Trial]:
    """Shows the trials until all trials have ended or a signal arrives. Returns the trials that have not ended."""
    unfinished, unanswered = list(trials), 0
    with display:
        while unfinished and not interrupted:
            try:
                queue, unanswered = _queue(), 0
            except Failure:
                unanswered += 1
                if unanswered > MAX_UNANSWERED:
                    raise
                time.sleep(POLL_SECONDS)
                continue
            for trial in list(unfinished):
                status = _status(root, trial, queue.get(jobs[trial.name]))
                display.set(trial, status)
                if status.state not in ("queued", "running"):
                    unfinished.remove(trial)
            display.refresh()
            if unfinished:
                time.sleep(POLL_SECONDS)
    return unfinished


def _submit(
    root: sweep.Root, trials: Sequence[sweep.Trial], command_of: Callable[[sweep.Trial], list[str]], resources: Resources
) -> dict[str, str]:
    """Submits the trials as one job array. Returns a dict from trial names to job ids."""
    import submitit

    logging.getLogger("submitit").setLevel(logging.ERROR)
    folder = (root.path / "logs" / "slurm").resolve()
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=MAX_REQUEUES)
    executor.update_parameters(**resources.parameters(root.path.name))
    try:
        with executor.batch():
            jobs = [executor.submit(Training(command_of(trial), os.fspath(_log(root, trial)))) for trial in trials]
    except (
        submitit.core.utils.FailedJobError,
        submitit.core.utils.FailedSubmissionError,
        subprocess.CalledProcessError,
    ) as error:
        raise Failure(f"SLURM refuses the jobs: {_slurm_message(error)}") from error
    return {trial.name: job.job_id for trial, job in zip(trials, jobs, strict=True)}


def _log(root: sweep.Root, trial: sweep.Trial) -> pathlib.Path:
    return root.log(trial).resolve()  # a job may start in another directory


def _queue() -> dict[str, str]:
    """Returns a dict from job ids to job states. The dict has all jobs of this user that SLURM still lists."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--me", "--format=%i %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Failure(f"SLURM does not answer: {_slurm_message(error)}") from error
    return dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if line.strip())


def _status(root: sweep.Root, trial: sweep.Trial, state: str | None) -> TrialStatus:
    """The status of a trial. `state` is the state of its job in SLURM, or None if SLURM does not list the job.

    While the job is waiting or running, the state of the trial comes from SLURM. After the job has ended, the state comes from
    the run directory if that state is final, and otherwise from SLURM.
    """
    status = read_status(root.run(trial))
    if state in WAITING:
        return status._replace(state="queued", message="")
    if state in RUNNING:
        return status._replace(state="running", message="")
    if status.state in FINAL_STATES:
        return status
    message = (state or "no longer in SLURM's queue").lower()
    if state in ("CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL", "DEADLINE", None):
        return status._replace(state="stopped", message=message)
    if state == "COMPLETED" and status.step:
        return status._replace(state="stopped", message=message)
    return status._replace(state="failed", message=failure_message(root.log(trial)) or f"{message}, see {root.path}/logs/slurm")


def _slurm_message(error: Exception) -> str:
    """SLURM's own message, on one line."""
    message = getattr(error, "stderr", None) or str(error)
    return " ".join((message.decode(errors="replace") if isinstance(message, bytes) else str(message)).split())


@contextlib.contextmanager
def _interrupted() -> Iterator[list[int]]:
    """Yields a list to which the number of each received SIGINT or SIGTERM is appended."""
    received: list[int] = []
    previous_handlers = {
        number: signal.signal(number, lambda number, _: received.append(number)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
