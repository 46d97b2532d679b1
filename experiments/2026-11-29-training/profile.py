"""Where the time of a training step goes: the operations of XLA's own trace, for one of the two devices.

    .venv/bin/python experiments/2026-11-29-training/profile.py SHAPE DTYPE [--operations 30]

The matrix products are the operations `ynn_fusion` and `dot`. The other names begin with the kind of the operation, such as
`transpose_copy_fusion`. --operations is the number of lines.
"""

import argparse
import collections
import os
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [os.fspath(ROOT), os.fspath(ROOT / "scripts"), os.fspath(ROOT / "scripts" / "peers")]
import charlm_peer  # noqa: E402 - it lies in a folder of scripts
import worker  # noqa: E402
from peers import measuring  # noqa: E402

STEPS = 10


def self_times(trace_folder: str) -> dict[str, tuple[float, int]]:
    """Operation → (ns without the operations that it calls, number of calls), in the busiest thread of XLA."""
    import jax

    (file,) = pathlib.Path(trace_folder).rglob("*.xplane.pb")
    threads = []
    for plane in jax.profiler.ProfileData.from_file(os.fspath(file)).planes:
        for line in plane.lines:
            if "XLAEigen" not in line.name:
                continue
            total, calls, running = collections.Counter(), collections.Counter(), []
            for begin, duration, name in sorted((event.start_ns, event.duration_ns, event.name) for event in line.events):
                while running and running[-1][0] <= begin:
                    running.pop()
                total[name] += duration
                calls[name] += 1
                if running:
                    total[running[-1][1]] -= duration
                running.append((begin + duration, name))
            threads.append({name: (total[name], calls[name]) for name in total})
    return max(threads, key=lambda times: sum(ns for ns, _ in times.values()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=measuring.SHAPES)
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--operations", type=int, default=30)
    args = parser.parse_args()
    job = {"task": "train", "cell": "lstm", "vocab": measuring.VOCAB, "dtype": args.dtype}
    job |= measuring.SHAPES[args.shape]._asdict()
    config = charlm_peer.config_of(job)
    from charlm.hardware import devices

    devices.use_huge_pages()
    devices.prepare(config, job["batch"])

    def profile(run, *_, **__) -> None:
        import jax

        run(2 * STEPS)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                steps = run(STEPS) / (job["batch"] * job["length"])
            times = self_times(folder)
        products = sum(ns for name, (ns, _) in times.items() if re.match(r"ynn_fusion|dot", name))
        total = sum(ns for ns, _ in times.values())
        print(f"{args.shape}, {args.dtype}: {total / steps / 1e6:.2f} ms per step and device, products {products / total:.0%}")
        for name, (ns, calls) in sorted(times.items(), key=lambda item: -item[1][0])[: args.operations]:
            print(f"{ns / steps / 1e6:9.3f} ms {calls / steps:7.1f} calls  {name}")

    worker.serve = profile
    charlm_peer.train(job, config, job["batch"])


if __name__ == "__main__":
    main()
