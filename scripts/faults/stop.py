"""Stops runs by SIGTERM or SIGINT. A training loop that receives one signal saves its state and stops.

In a third of the tries, the run receives a second signal, which ends the run at once. At the end, each run is compared with a
run that was never stopped.
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
PATIENCE = 10  # a program must end within this number of seconds after the signals


def results(runs: Runs) -> list[Result]:
    return runs.of_each_framing(_stop)


def _stop(runs: Runs, framing: str) -> Result:
    rng, without_fault, failures = runs.random("stop", framing), runs.straight(framing), []
    slowest, tried, workdir = 0.0, 0, runs.folder / f"stop_{framing}"
    while tried < TRIES:
        saved, bytes_before = saved_step(workdir), metrics_bytes(workdir)
        process = start(runs.train(workdir, framing))
        wait_for_moment(process, workdir, rng.choice(MOMENTS), rng, 6.0)
        in_loop = metrics_bytes(workdir) > bytes_before  # start-up, which does not handle signals, has ended
        signals = [rng.choice((signal.SIGTERM, signal.SIGINT)) for _ in range(2 if rng.random() < 1 / 3 else 1)]
        begin = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(rng.uniform(0, 0.05) if len(signals) > 1 else 0)
        output, errors = finish(process)
        seconds = time.monotonic() - begin
        failures += checks.resumed_at(workdir, saved, output)
        if process.returncode == 0:  # the run was done before the first signal arrived
            failures += checks.survival(workdir, without_fault)
            shutil.rmtree(workdir)
            continue
        tried, slowest = tried + 1, max(slowest, seconds)
        allowed = {128 + number for number in signals}
        if not in_loop or len(signals) > 1 or json.loads((workdir / "status.json").read_text())["state"] == "done":
            allowed |= {-number for number in signals}
        if process.returncode not in allowed or seconds > PATIENCE or "Traceback" in errors:
            failures.append(f"{workdir}: {signals} gave {process.returncode} after {seconds:.1f} s: {errors[-300:]}")
    succeed(runs.train(workdir, framing))
    failures += checks.survival(workdir, without_fault)
    note = f"all ended within {slowest:.1f} s"
    return Result(f"one or two signals (SIGTERM, SIGINT), {framing}", tried, failures, note)
