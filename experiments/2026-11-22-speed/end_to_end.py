"""Measures the cost of logging, evaluating, saving and sampling: scripts/train.py end to end, and its bare step.

    .venv/bin/python experiments/2026-11-22-speed/end_to_end.py [configs/tiny_shakespeare.py] [--config.KEY=VALUE ...]

scripts/train.py trains the config in a new directory. Its speed is measured from the first log row to the end of the program.
This includes evaluations, samples and checkpoints, but not the compilation of the step. After every 15 seconds, SIGSTOP pauses
the training for 5 seconds. During the pause another process makes bare steps on the same batches. If the machine becomes slower
or faster, this affects the training and the bare steps equally.

Further flags go to the training only. They may change its length (`train.epochs`) but not a step. The script prints two lines:
the last line of the training, and the two speeds in chars/s.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
TRAINING_SECONDS, BARE_SECONDS = 15, 5  # repeated until the training ends


def bare(config_file: str) -> None:
    """Makes bare steps. For each number of seconds on stdin, prints the number of trained characters and the actual seconds."""
    from charlm.config import load as config
    from charlm.hardware import devices

    checked = config.load(config_file, {})
    devices.use_huge_pages()
    devices.prepare_cpu(checked, checked.batch.size)

    import jax
    import numpy as np

    from charlm.training import setup, state
    from charlm.training import step as step_module

    made = setup.set_up(checked)
    train_step = step_module.make_train_step(made.functions, made.optimizer, made.mesh, made.pad)
    together = made.steps_per_call
    step = jax.jit(step_module.several(train_step), donate_argnums=0)
    initial = jax.jit(lambda: state.initial_state(made.functions, made.optimizer, made.batches.rows, made.seed))
    now, done = state.placed(initial(), made.mesh), 0

    def run(seconds: float) -> tuple[int, float]:
        nonlocal now, done
        begin, first, before = time.perf_counter(), done, None
        while time.perf_counter() - begin < seconds:
            batches = [made.batches.batch_at(done + number) for number in range(together)]
            batches_K = jax.tree.map(lambda *each: jax.numpy.stack(each), *batches)
            now, metrics = step(now, batches_K, made.rates(done, together), np.uint32(made.seed))
            done += together
            if before is not None:
                jax.device_get(before)
            before = metrics
        jax.block_until_ready(now)
        return (done - first) * checked.batch.size * checked.batch.length, time.perf_counter() - begin

    print(*run(5), flush=True)
    for line in sys.stdin:
        run(0.5)  # fills the processor's caches again, which the training has overwritten
        print(*run(float(line)), flush=True)


def in_turn(training: subprocess.Popen, beside: subprocess.Popen) -> tuple[float, float, float]:
    """Runs a training to its end, with pauses for bare steps.

    Returns:
      seconds of the training without pauses; characters and seconds of the bare steps.
    """
    seconds = bare_chars = bare_seconds = 0.0
    while True:
        begin = time.perf_counter()
        try:
            training.wait(TRAINING_SECONDS)
        except subprocess.TimeoutExpired:
            training.send_signal(signal.SIGSTOP)
            seconds += time.perf_counter() - begin
            chars, took = answer(beside, BARE_SECONDS)
            bare_chars, bare_seconds = bare_chars + chars, bare_seconds + took
            training.send_signal(signal.SIGCONT)
        else:
            return seconds + time.perf_counter() - begin, bare_chars, bare_seconds


def answer(beside: subprocess.Popen, seconds: float | None = None) -> list[float]:
    if seconds is not None:
        print(seconds, file=beside.stdin, flush=True)
    return [float(number) for number in beside.stdout.readline().split()]


def main() -> None:
    config_file, *overrides = sys.argv[1:] or ["configs/tiny_shakespeare.py"]
    with tempfile.TemporaryDirectory() as folder:
        metrics = pathlib.Path(folder) / "run/metrics.jsonl"
        command = [sys.executable, os.fspath(ROOT / "scripts/train.py"), f"--config={config_file}", *overrides]
        bare_command = [sys.executable, __file__, "bare", config_file]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        with subprocess.Popen(bare_command, **pipes) as beside:
            answer(beside)  # waits until the step is compiled
            with subprocess.Popen([*command, f"--workdir={metrics.parent}"], **pipes) as training:
                while training.poll() is None and not (metrics.exists() and metrics.read_text().endswith("\n")):
                    time.sleep(0.02)
                seconds, bare_chars, bare_seconds = in_turn(training, beside)
                lines = list(training.stdout)
            beside.stdin.close()
        if training.returncode:
            sys.exit(f"{' '.join(command)} ended with {training.returncode}")
        print(lines[-1], end="", flush=True)
        first, *_, last = (json.loads(line)["step"] for line in metrics.read_text().splitlines())
        batch = json.loads((metrics.parent / "config.json").read_text())["batch"]
        whole, alone = (last - first) * batch["size"] * batch["length"] / seconds, bare_chars / bare_seconds
        print(f"bare {alone:,.0f}, end to end {whole:,.0f}: {whole / alone:.1%}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        bare(sys.argv[2])
    else:
        main()
