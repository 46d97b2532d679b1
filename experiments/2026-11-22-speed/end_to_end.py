"""What logging, evaluating, saving and sampling cost: scripts/train.py end to end beside its bare step.

    .venv/bin/python experiments/2026-11-22-speed/end_to_end.py [configs/tiny_shakespeare.py] [rounds]

In each round the config is trained by scripts/train.py in a new directory, and its rate taken from the first log row to the end
of the program, evaluations, samples and checkpoints included; compiling the step is left out. Before and after it a process of
its own makes bare steps on the same batches. Two lines a round: the last of the training, and chars/s.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
BARE_SECONDS = 30


def bare(config_file: str) -> None:
    """Steps and nothing else, for a while; prints chars/s."""
    from charlm import config, devices

    checked = config.load(config_file, {})
    devices.use_huge_pages()
    devices.prepare_cpu(checked, checked.batch.size)

    import jax

    from charlm import setup, state, train

    made = setup.set_up(checked)
    train_step = train.make_train_step(made.functions, made.optimizer, made.seed, made.mesh, made.pad)
    together = made.steps_per_call
    step = jax.jit(train.several(train_step), donate_argnums=0)
    initial = jax.jit(lambda: state.initial_state(made.functions, made.optimizer, made.batches.rows, made.seed))
    now, done = state.placed(initial(), made.mesh), 0

    def run(seconds: float) -> float:
        nonlocal now, done
        begin, first, before = time.perf_counter(), done, None
        while time.perf_counter() - begin < seconds:
            batches = [made.batches.batch_at(done + number) for number in range(together)]
            now, metrics = step(now, jax.tree.map(lambda *each: jax.numpy.stack(each), *batches))
            done += together
            if before is not None:
                jax.device_get(before)
            before = metrics
        jax.block_until_ready(now)
        return (done - first) * checked.batch.size * checked.batch.length / (time.perf_counter() - begin)

    run(5)
    print(run(BARE_SECONDS))


def measured_bare(config_file: str) -> float:
    command = [sys.executable, __file__, "bare", config_file]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1])


def end_to_end(config_file: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        command = [sys.executable, os.fspath(ROOT / "scripts/train.py"), f"--config={config_file}", f"--workdir={workdir}"]
        metrics = workdir / "metrics.jsonl"
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            while not (metrics.exists() and metrics.read_text().endswith("\n")):
                time.sleep(0.02)
            begin = time.perf_counter()
            *_, last_line = process.stdout
            if process.wait():
                sys.exit(f"{' '.join(command)} ended with {process.returncode}")
            seconds = time.perf_counter() - begin
        print(last_line, end="", flush=True)
        first, *_, last = (json.loads(line)["step"] for line in metrics.read_text().splitlines())
        config = json.loads((workdir / "config.json").read_text())
        return (last - first) * config["batch"]["size"] * config["batch"]["length"] / seconds


def main() -> None:
    config_file = sys.argv[1] if len(sys.argv) > 1 else "configs/tiny_shakespeare.py"
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 1):
        before, whole, after = measured_bare(config_file), end_to_end(config_file), measured_bare(config_file)
        share = whole / ((before + after) / 2)
        print(f"bare {before:,.0f}, end to end {whole:,.0f}, bare {after:,.0f}: {share:.1%}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        bare(sys.argv[2])
    else:
        main()
