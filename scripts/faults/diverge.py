"""Trains with each optimiser at a learning rate of 1,000. Each run must notice that it diverges, and mark itself diverged."""

import json

from faults import checks
from faults.runs import LOG_EVERY, Result, Runs, logged_step

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")


def results(runs: Runs) -> list[Result]:
    failures = []
    for optimizer in OPTIMIZERS:
        what, workdir = f"diverge with {optimizer}", runs.folder / f"diverge_{optimizer}"
        overrides = {"optim.name": optimizer, "optim.learning_rate": 1e3}
        status, _, errors = checks.outcome(runs.train(workdir, "stream", **overrides))
        failures += checks.refusal(status, errors, ("is marked diverged",), what)
        end = json.loads((workdir / "status.json").read_text())
        if end["state"] != "diverged" or end["step"] > logged_step(workdir) + LOG_EVERY:
            failures.append(f"{what}: {end}")
    return [Result("learning rate of 1,000, each optimiser", len(OPTIMIZERS), failures, "noticed within a log interval")]
