"""Measures nats and seconds of a validation split for several numbers of lanes and lengths of burn-in.

    .venv/bin/python experiments/2026-11-22-speed/lanes.py WORKDIR

WORKDIR is a run directory, for example of configs/tiny_shakespeare.py. Each line has lanes, burn-in, nats and seconds (median
of three).
"""

import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, os.fspath(ROOT))

from charlm.data.framing import Framing  # noqa: E402
from charlm.data.ids import encode  # noqa: E402
from charlm.hardware import devices  # noqa: E402
from charlm.inference.protocol import Protocol  # noqa: E402
from charlm.rundir import run  # noqa: E402

LANES = ((1, 0), (16, 1000), (32, 1000), (32, 250), (64, 1000), (64, 250), (128, 1000), (128, 100), (128, 50), (128, 0))


def main() -> None:
    trained_run = run.Run(sys.argv[1])
    devices.use_huge_pages()
    devices.prepare_cpu(trained_run.config(), max(lanes for lanes, _ in LANES))

    import jax

    from charlm.inference import evaluate, restore

    trained = restore.load(sys.argv[1], "best")
    mesh = devices.mesh(max(lanes for lanes, _ in LANES), 0)
    params = jax.device_put(trained.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    encoded = encode(trained.vocab, trained_run.splits()["validation"], "the validation split")
    protocol = Protocol.of(trained.config, Framing.of(trained.config))
    for lanes, burn_in in LANES:
        evaluated, seconds = evaluate.evaluator(trained.functions, mesh), []
        for _ in range(4):
            begin = time.perf_counter()
            nats, chars = evaluated(params, encoded, protocol._replace(lanes=lanes, burn_in=burn_in))
            seconds.append(time.perf_counter() - begin)
        print(f"{lanes:>3} {burn_in:>5} {nats / chars:.7f} {statistics.median(seconds[1:]):.2f}", flush=True)


if __name__ == "__main__":
    main()
