"""Stops runs by SIGTERM or SIGINT. A run that is stopped saves its state.

In a third of the tries, a second signal follows and ends the run at once.
"""

import json
import shutil
import signal
import time

from faults import checks
from faults.runs import (
    MOMENTS,
    Result,
    Runs,
    finish,
    metrics_bytes,
    saved_step,
    start,
    succeed,
    wait_for_moment,
)

TRIES = 12  # for each framing
PATIENCE = 10  # seconds within which a signal must end the program


def results(runs: Runs) -> list[Result]:
    return runs.of_each_framing(_stop)


def _stop(runs: Runs, framing: str) -> Result:
    rng, straight, failures = runs.random("stop", framing), runs.straight(framing), []
    slowest, tried, workdir = 0.0, 0, runs.folder / f"stop_{framing}"
    while tried < TRIES:
        saved, bytes_before = saved_step(workdir), metrics_bytes(workdir)
        process = start(runs.train(workdir, framing))
        wait_for_moment(process, workdir, rng.choice(MOMENTS), rng, 6.0)
        in_loop = metrics_bytes(workdir) > bytes_before  # the training loop handles signals, but start-up does not
        signals = [rng.choice((signal.SIGTERM, signal.SIGINT)) for _ in range(2 if rng.random() < 1 / 3 else 1)]
        begin = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(rng.uniform(0, 0.05) if len(signals) > 1 else 0)
        output, errors = finish(process)
        seconds = time.monotonic() - begin
        failures += checks.resumed_at(workdir, saved, output)
        if process.returncode == 0:  # the run was done before the signal came
            failures += checks.survival(workdir, straight)
            shutil.rmtree(workdir)
            continue
        tried, slowest = tried + 1, max(slowest, seconds)
        allowed = {128 + number for number in signals}
        if not in_loop or len(signals) > 1 or json.loads((workdir / "status.json").read_text())["state"] == "done":
            allowed |= {-number for number in signals}
        if process.returncode not in allowed or seconds > PATIENCE or "Traceback" in errors:
            failures.append(f"{workdir}: {signals} gave {process.returncode} after {seconds:.1f} s: {errors[-300:]}")
    succeed(runs.train(workdir, framing))
    failures += checks.survival(workdir, straight)
    note = f"all ended within {slowest:.1f} s"
    return Result(f"one or two signals (SIGTERM, SIGINT), {framing}", tried, failures, note)
