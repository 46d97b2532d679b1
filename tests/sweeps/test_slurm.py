"""Tests of sweeps on SLURM. The tests start a real SLURM cluster on this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import time

import pytest
from conftest import ROOT
from faults.checks import read_rows
from test_sweep import CONFIG

pytestmark = pytest.mark.slurm

SLURM_CONF = """
ClusterName=charlm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={next_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
SWEEP = """chain(
        product({"model.hidden": [16, 20, 24]}),
        [{"optim.learning_rate": 1e30, "optim.name": "sgd", "optim.clip_norm": 0.0}],
    )"""


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_until(condition, seconds: float, event: str):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {event}"
        time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """Starts a SLURM cluster with one node of two cores, and stops the cluster after the tests."""
    if shutil.which("slurmctld") is None or os.getuid() != 0:
        pytest.skip("these tests need SLURM and root: run scripts/test.sh --slurm as root, which also installs SLURM")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        port, next_port = first.getsockname()[1], second.getsockname()[1]
    conf = folder / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=socket.gethostname(), folder=folder, port=port, next_port=next_port))
    os.environ["SLURM_CONF"] = os.fspath(conf)
    if subprocess.run(["pgrep", "munged"], capture_output=True).returncode:
        os.makedirs("/run/munge", exist_ok=True)
        shutil.chown("/run/munge", "munge")
        output_of("runuser", "-u", "munge", "--", "munged")
    daemons = [
        subprocess.Popen([name, "-D"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for name in ("slurmctld", "slurmd")
    ]
    idle = ["sinfo", "--noheader", "--format=%T"]
    try:
        wait_until(lambda: subprocess.run(idle, capture_output=True, text=True).stdout.strip() == "idle", 60, "an idle node")
        yield
    finally:
        for daemon in daemons[::-1]:
            daemon.terminate()
            daemon.wait()
        del os.environ["SLURM_CONF"]


@pytest.fixture
def config_file(tmp_path, corpus_file):
    file = tmp_path / "swept.py"
    file.write_text(CONFIG.format(corpus=os.fspath(corpus_file), sweep=SWEEP, steps=1500))
    return file


def last_step(workdir) -> int:
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().rpartition("\n")[0].splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def test_cancelled_requeued_and_diverged_jobs_have_the_right_states(script, config_file, tmp_path):
    root = tmp_path / "root"
    arguments = [f"--config={config_file}", f"--root={root}", "--launcher=slurm", "--parallel=2", "--cpus=1", "--time=10"]
    with subprocess.Popen(script.command("sweep", *arguments), env=script.env(), stdout=subprocess.PIPE, text=True) as process:
        wait_until(
            lambda: last_step(root / "hidden=16") >= 100 and last_step(root / "hidden=20") >= 100, 120, "two trials to train"
        )
        jobs = json.loads((root / "sweep.json").read_text())["jobs"]
        output_of("scancel", jobs["hidden=16"])
        # SLURM sends SIGUSR2 to a job before it preempts the job, and before the time limit of the job. This command sends
        # the same signal.
        send_sigusr2 = ["scancel", "--signal=USR2", jobs["hidden=20"]]
        # scancel fails if the job has already ended, so its exit status is ignored.
        subprocess.run(send_sigusr2, capture_output=True)
        pending_jobs = ["squeue", "--noheader", "--array", "--states=PENDING", "--format=%i"]
        wait_until(lambda: jobs["hidden=20"] in output_of(*pending_jobs).split(), 60, "the job to be queued again")
        # Without this command, SLURM waits two minutes before it starts a requeued job.
        output_of("scontrol", "update", f"JobId={jobs['hidden=20']}", "StartTime=now")
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 1, output
    assert "2 done, 1 diverged" in output.replace("1 stopped, ", "")
    assert "cancelled" in output
    states = {path.parent.name: json.loads(path.read_text())["state"] for path in root.glob("*/status.json")}
    diverged = next(name for name in states if "1e+30" in name)
    assert states == {"hidden=16": "incomplete", "hidden=20": "done", "hidden=24": "done", diverged: "diverged"}
    assert "resuming at step" in (root / "logs" / "hidden=20.log").read_text()

    result = script("sweep", *arguments, status=1)
    assert "1 to resume" in result.stdout
    assert "3 done, 1 diverged of 4 trials." in result.stdout
    for hidden in (16, 20, 24):
        uninterrupted = tmp_path / f"uninterrupted{hidden}"
        script("train", f"--config={config_file}", f"--workdir={uninterrupted}", f"--config.model.hidden={hidden}")
        assert read_rows(root / f"hidden={hidden}") == read_rows(uninterrupted)


def test_a_job_that_slurm_preempts_is_requeued_and_resumes(script, config_file, tmp_path):
    """A job in a partition of higher priority needs the whole node, so SLURM itself stops and requeues the job of the trial."""
    root = tmp_path / "root"
    arguments = [f"--config={config_file}", f"--root={root}", "--launcher=slurm", "--only=model.hidden=16", "--cpus=1"]
    with subprocess.Popen(script.command("sweep", *arguments), env=script.env(), stdout=subprocess.PIPE, text=True) as process:
        wait_until(lambda: last_step(root / "hidden=16") >= 100, 120, "the trial to train")
        job = json.loads((root / "sweep.json").read_text())["jobs"]["hidden=16"]
        urgent = ["--partition=urgent", "--cpus-per-task=2", f"--output={tmp_path / 'urgent'}", "--wrap=echo begun; sleep 3"]
        output_of("sbatch", *urgent)
        wait_until(lambda: (tmp_path / "urgent").exists(), 90, "the urgent job to begin")
        assert "JobState=PENDING" in (waiting := output_of("scontrol", "show", "job", job))
        assert "Restarts=1" in waiting
        stopped_at = last_step(root / "hidden=16")
        assert json.loads((root / "hidden=16" / "status.json").read_text())["state"] == "incomplete"
        # Without this command, SLURM waits two minutes before it starts a requeued job.
        output_of("scontrol", "update", f"JobId={job}", "StartTime=now")
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "1 done of 1 trial." in output
    (resumed_at,) = re.findall(r"resuming at step (\d+)", (root / "logs" / "hidden=16.log").read_text())
    assert int(resumed_at) >= stopped_at >= 100  # the training saved its state when it got the signal
    script("train", f"--config={config_file}", f"--workdir={tmp_path / 'straight'}", "--config.model.hidden=16")
    assert read_rows(root / "hidden=16") == read_rows(tmp_path / "straight")


def test_jobs_continue_after_ctrl_c_and_are_not_submitted_again(script, config_file, tmp_path):
    root = tmp_path / "root"
    arguments = [f"--config={config_file}", f"--root={root}", "--launcher=slurm", "--only=model.hidden=16"]
    with subprocess.Popen(script.command("sweep", *arguments), env=script.env(), stdout=subprocess.PIPE, text=True) as process:
        wait_until(lambda: last_step(root / "hidden=16") >= 100, 120, "the trial to train")
        process.send_signal(2)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the jobs continue" in output
    again = script("sweep", *arguments).stdout
    assert "submitted" not in again
    assert "1 done of 1 trial." in again


def test_two_tasks_train_one_trial_together(script, config_file, tmp_path):
    root = tmp_path / "root"
    flags = [f"--config={config_file}", f"--root={root}", "--only=model.hidden=16", "--config.train.steps=60"]
    result = script("sweep", *flags, "--launcher=slurm", "--tasks=2", "--cpus=1")
    assert "1 done of 1 trial." in result.stdout
    assert "4 rows on 2 cpu devices of 2 processes" in (root / "logs" / "hidden=16.log").read_text()
    script("train", *flags[:1], *flags[3:], f"--workdir={tmp_path / 'one'}", "--config.model.hidden=16")
    two_tasks, one_process = read_rows(root / "hidden=16"), read_rows(tmp_path / "one")
    assert [row["step"] for row in two_tasks] == [row["step"] for row in one_process]
    assert [row["nats"] for row in two_tasks] == pytest.approx([row["nats"] for row in one_process], rel=1e-5)


def test_an_error_of_sbatch_is_shown_in_one_line(script, config_file, tmp_path):
    flags = [f"--config={config_file}", f"--root={tmp_path / 'root'}", "--launcher=slurm", "--partition=missing"]
    message = script("sweep", *flags, status=1).stderr.splitlines()[-1]  # the lines before are the message of sbatch itself
    assert message.startswith("error: SLURM refuses the jobs: ")
    assert "partition" in message


def test_jobs_use_absolute_paths(script, tmp_path):
    """The sweep command and its jobs may run in different working directories."""
    root = os.path.relpath(tmp_path / "root", ROOT)
    flags = ["--config=configs/tiny.py", f"--root={root}", "--dry_run", "--launcher=slurm"]
    output = script("sweep", *flags, cwd=ROOT).stdout
    assert f"--config={ROOT / 'configs' / 'base.py'}" in output
    assert f"--workdir={tmp_path / 'root'}" in output
