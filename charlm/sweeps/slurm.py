"""Running the trials of a sweep as jobs of SLURM, by submitit, and watching them.

Where a job stands is read from SLURM's queue and from the run directories, so that clusters without accounting do too.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from charlm.errors import Failure, UserError
from charlm.sweeps import launch, sweep

POLL_SECONDS = 2.0
PATIENCE = 30  # times that SLURM may not answer, one after the other
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "RESIZING")
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")
REQUEUES = 1000  # of a job that reaches its time limit: as often as it takes
SECONDS_OF_GRACE = 600  # the longest between SLURM's SIGTERM and SIGKILL
SECONDS_TO_SAVE = 90  # before its time limit a job is told to save and is put into the queue again


@dataclasses.dataclass(frozen=True)
class Resources:
    """What each job asks for; None leaves it to the cluster. minutes: its time limit, at which it is requeued. tasks:
    processes on each node that train one trial together."""

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
        """As submitit calls them."""
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
            "slurm_srun_args": [f"--cpus-per-task={self.cpus}"] if self.cpus else None,  # srun no longer takes it from sbatch
            "slurm_additional_parameters": {"requeue": True},
            "slurm_array_parallelism": self.at_once,
            "slurm_signal_delay_s": min(SECONDS_TO_SAVE, self.minutes * 60 // 3),
            "stderr_to_stdout": True,
        }
        return {key: value for key, value in parameters.items() if value is not None}


class Training:
    """What submitit runs as a job: one training, which before preemption or time-out saves its state and is queued again."""

    def __init__(self, command: list[str], log: str):
        self._command, self._log = command, log
        self._process = None

    def __call__(self) -> int:
        with open(self._log, "a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(self._command)}  # job {os.environ.get('SLURM_JOB_ID')}\n")
            log.flush()
            # SLURM sends its warning to every process of the job; the training waits for our SIGTERM instead of dying of it.
            before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            process = self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
            signal.signal(signal.SIGUSR2, before)
        code = process.wait()
        if code in launch.SAVED_BY and self._process is not None:
            # SLURM has said SIGTERM: it cancels or preempts this job. A job that ended by itself it would not queue again.
            time.sleep(SECONDS_OF_GRACE)
        if code not in (0, *launch.SAVED_BY):
            raise SystemExit(code)  # the job has failed, as SLURM then says
        return code

    def checkpoint(self):
        """Called by submitit when the job is to end: what shall be run when it begins again."""
        import submitit

        process, self._process = self._process, None
        if process is not None:  # the warning may come twice; a second SIGTERM would end the training before it has saved
            process.terminate()
            # Not process.wait(): this is a signal handler, and the call that it interrupts holds the lock of that.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Training(self._command, self._log))


def check() -> None:
    """Raises a UserError where there is no SLURM to launch with."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "--launcher=slurm: there is no sbatch on this machine; launch from a node of the cluster, or with --launcher=local."
        )


def launched(
    root: sweep.Root,
    trials: Sequence[sweep.Trial],
    command_of: Callable[[sweep.Trial], list[str]],
    resources: Resources,
    display: launch.Display,
    record: Callable[[dict[str, str]], None],
) -> int:
    """Submits the trials that are not in the queue yet as one array, and watches until all have ended.

    Returns the number of the signal that ended the watching, else 0; the jobs then go on.

    Args:
      record: called with all jobs, name of the trial → id, once they are submitted.

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
        waiting = _watched(root, trials, jobs, display, interrupted)
    if interrupted:
        ids = " ".join(jobs[trial.name] for trial in waiting)
        print(f"the jobs go on: the same command watches them again, scancel {ids} stops them.")
        return interrupted[0]
    return 0


def _watched(
    root: sweep.Root, trials: Sequence[sweep.Trial], jobs: dict[str, str], display: launch.Display, interrupted: list[int]
) -> list[sweep.Trial]:
    """Shows the trials until all have ended or somebody interrupts; returns those that have not ended."""
    waiting, unanswered = list(trials), 0
    with display:
        while waiting and not interrupted:
            try:
                queue, unanswered = _queue(), 0
            except Failure:
                unanswered += 1
                if unanswered > PATIENCE:
                    raise
                time.sleep(POLL_SECONDS)
                continue
            for trial in list(waiting):
                standing = _standing(root, trial, queue.get(jobs[trial.name]))
                display.set(trial, standing)
                if standing.state not in ("queued", "running"):
                    waiting.remove(trial)
            display.refresh()
            if waiting:
                time.sleep(POLL_SECONDS)
    return waiting


def _submit(
    root: sweep.Root, trials: Sequence[sweep.Trial], command_of: Callable[[sweep.Trial], list[str]], resources: Resources
) -> dict[str, str]:
    import submitit

    logging.getLogger("submitit").setLevel(logging.ERROR)
    folder = (root.path / "logs" / "slurm").resolve()
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=REQUEUES)
    executor.update_parameters(**resources.parameters(root.path.name))
    try:
        with executor.batch():
            jobs = [executor.submit(Training(command_of(trial), os.fspath(_log(root, trial)))) for trial in trials]
    except (
        submitit.core.utils.FailedJobError,
        submitit.core.utils.FailedSubmissionError,
        subprocess.CalledProcessError,
    ) as error:
        raise Failure(f"SLURM refuses the jobs: {_words(error)}") from error
    return {trial.name: job.job_id for trial, job in zip(trials, jobs, strict=True)}


def _log(root: sweep.Root, trial: sweep.Trial) -> pathlib.Path:
    return root.log(trial).resolve()  # a job begins in a directory of its own choice


def _queue() -> dict[str, str]:
    """Job id → state, of all jobs of this user that SLURM still remembers."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--me", "--format=%i %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Failure(f"SLURM does not answer: {_words(error)}") from error
    return dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if line.strip())


def _standing(root: sweep.Root, trial: sweep.Trial, state: str | None) -> launch.Standing:
    """Where a trial stands; the run directory has the last word once its job is over."""
    standing = launch.standing_of(root.run(trial))
    if state in WAITING:
        return standing._replace(state="queued", message="")
    if state in RUNNING:
        return standing._replace(state="running", message="")
    if standing.state in launch.ENDED:
        return standing
    words = (state or "no longer in SLURM's queue").lower()
    if state in ("CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL", "DEADLINE", None):
        return standing._replace(state="stopped", message=words)
    if state == "COMPLETED" and standing.step:
        return standing._replace(state="stopped", message=words)
    return standing._replace(
        state="failed", message=launch.last_words(root.log(trial)) or f"{words}, see {root.path}/logs/slurm"
    )


def _words(error: Exception) -> str:
    """What SLURM said."""
    said = getattr(error, "stderr", None) or str(error)
    return " ".join((said.decode(errors="replace") if isinstance(said, bytes) else str(said)).split())


@contextlib.contextmanager
def _interrupted() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM add their number."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
