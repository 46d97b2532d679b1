"""Measures training steps of charlm and of torch.nn.LSTM: the programs of scripts/peers/, which scripts/benchmark.py uses too.

Each variant of a network is measured in its own process. The process makes its first call, which includes the compilation. It
then makes steps for some time, twice. The compiled programs of earlier processes are not used.

The sizes of the networks are S, M and L of scripts/benchmark.py, and XL: one-hot input, 2 LSTM layers of 1024, batches of 256
rows with 100 characters.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

from peers.measuring import PEERS, SHAPES, VOCAB, Shape

from device.reporting import Job, Report

ALL_SHAPES = SHAPES | {"XL": Shape(layers=2, hidden=1024, embedding=0, batch=256, length=100)}
SECONDS = 1.5  # duration of each measurement
LONGEST = 90.0  # seconds after which a process is killed

Variant = dict[str, Any]


def of_charlm(job: Job, report: Report) -> None:
    _measure(job, report, "charlm", "charlm_peer.py", charlm_variants(job.platform, job.is_cuda))


def of_torch(job: Job, report: Report) -> None:
    if importlib.util.find_spec("torch") is None:
        report.skip(f"{sys.executable} has no PyTorch")
        return
    test = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if not job.is_cpu and subprocess.run([sys.executable, "-c", test], capture_output=True).returncode:
        report.skip("PyTorch sees no GPU")
        return
    _measure(job, report, "torch", "torch_peer.py", torch_variants(job.platform))


def charlm_variants(platform: str, is_cuda: bool) -> list[tuple[str, Variant]]:
    """(shape, variant) in the order in which they are measured: the most important ones first."""
    if platform == "cpu":
        float32, bfloat16 = {"dtype": "float32"}, {"dtype": "bfloat16"}
        return [("S", float32), ("S", bfloat16), ("S", float32 | {"unroll": 8}), ("M", float32), ("L", float32)]
    tf32, bfloat16 = {"dtype": "float32", "precision": "tf32"}, {"dtype": "bfloat16"}
    cudnn = [tf32 | {"kernel": "cudnn"}] if is_cuda else []
    buffers = [tf32 | {"command_buffers": True}] if is_cuda else []
    groups = [[tf32, *cudnn], [bfloat16, tf32 | {"unroll": 8}, *buffers], [bfloat16 | {"unroll": 16}]]
    groups += [[{"dtype": "float32", "precision": "float32"}], [each | {"precision": "float32"} for each in cudnn]]
    return [(shape, variant) for group in groups for shape in ("L", "XL", "S", "M") for variant in group]


def torch_variants(platform: str) -> list[tuple[str, Variant]]:
    """(shape, variant) in the order in which they are measured. On a CPU, PyTorch's LSTM has no float16."""
    types = ("float32", "bfloat16") if platform == "cpu" else ("float32", "float16")
    shapes = ("S", "M", "L") if platform == "cpu" else ("L", "XL", "S", "M")
    return [(shape, {"dtype": dtype}) for shape in shapes for dtype in types]


def words(variant: Variant) -> str:
    """A variant in words, such as `float32 (tf32), kernel cudnn, unroll 8`."""
    dtype = "float32 (tf32)" if variant.get("precision") == "tf32" else variant["dtype"]
    parts = [dtype, f"kernel {variant['kernel']}" if "kernel" in variant else ""]
    parts += [f"unroll {variant['unroll']}" if "unroll" in variant else "", "command buffers" * ("command_buffers" in variant)]
    return ", ".join(filter(None, parts))


def _measure(job: Job, report: Report, library: str, program: str, variants: Iterable[tuple[str, Variant]]) -> None:
    longest = 0.0
    for shape, variant in variants:
        what = f"{library}, {shape}, {words(variant)}"
        if job.seconds_left() < max(1.2 * longest, 10):
            report.left_out(what)
            continue
        begin = time.monotonic()
        try:
            answers = _answers(program, shape, variant, 0 if job.is_cpu else 1, min(LONGEST, job.seconds_left()))
        except RuntimeError as error:
            report.wrong(f"speed of {what}: {error}")
            continue
        finally:
            longest = max(longest, time.monotonic() - begin)
        ready, *measured = answers
        rates = [answer["chars_per_second"] for answer in measured]
        rate = sum(rates) / len(rates)
        memory = max(answer.get("peak_device_bytes") or 0 for answer in measured)
        report.figure(
            library=library,
            shape=shape,
            variant=words(variant),
            chars_per_second=rate,
            spread=(max(rates) - min(rates)) / rate,
            tflop_per_second=rate * ALL_SHAPES[shape].flop_per_char() / 1e12,
            first_call_seconds=ready["first_call_seconds"],
            seconds_to_first_step=ready["seconds_to_first_step"],
            peak_bytes=memory or max(answer["peak_rss_bytes"] for answer in measured),
            memory="device" if memory else "resident set",
        )


def _answers(program: str, shape: str, variant: Variant, devices: int, seconds: float) -> list[dict[str, Any]]:
    """What a program of scripts/peers/ prints: a line when it is ready, and a line for each measurement.

    Args:
      devices: the value of the key `devices`, for charlm.

    Raises:
      RuntimeError: the program failed, or did not end in time.
    """
    sizes = ALL_SHAPES[shape]._asdict()
    task = {"task": "train", "cell": "lstm", **sizes, "vocab": VOCAB, "devices": devices, **variant, "started": time.time()}
    command = [sys.executable, os.fspath(PEERS / program), json.dumps(task)]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    try:
        done = subprocess.run(
            command, input=f"{SECONDS}\n" * 2, capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no end within {seconds:.0f} s") from error
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(answers) < 3:
        lines = [line for line in done.stderr.splitlines() if "rror" in line] or ["it printed no error"]
        raise RuntimeError(f"ended with status {done.returncode}: {' '.join(lines[-1].split())[:300]}")
    return answers
