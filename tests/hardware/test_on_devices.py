"""Tests that a training on several devices gives the losses, the parameters and the state of a training on one device.

The program on_devices.py trains the cases. Its random masks are the same for every number of devices.
"""

import json
import os
import subprocess
import sys

import on_devices
import pytest
from conftest import ROOT, slow

from charlm.config import keys

NEEDS_A_GPU = {"model.kernel": {"cudnn"}}
# Sums over fewer rows are rounded in another way. In bfloat16, a value may then be rounded to the next number.
LARGEST = {"metrics": 5e-6, "evaluation": 1e-6, "state": 2e-4}
LARGEST_BFLOAT16 = {"metrics": 2e-3, "evaluation": 2e-4, "state": 0.1}


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        pytest.param((1, 8), ["lstm with all regularisers"], id="one case"),
        slow((1, 2, 4, 8), [*on_devices.CASES], id="all cases"),
    ],
)
def test_a_training_on_2_4_and_8_devices_equals_a_training_on_one_device(numbers, names, corpus_file):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={on_devices.MOST_DEVICES}"
    command = [sys.executable, on_devices.__file__, os.fspath(corpus_file), ",".join(map(str, numbers)), *names]
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": ".", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(line["case"], line["devices"]) for line in lines] == [(name, number) for name in names for number in numbers[1:]]
    wrong = [line for line in lines if not is_right(line)]
    assert not wrong, "\n".join(map(str, wrong))


def is_right(line: dict) -> bool:
    largest = LARGEST_BFLOAT16 if line["case"] == "bfloat16" else LARGEST
    is_near = all(line[name] <= largest[name] for name in largest)
    # Two sums over devices in one program can deadlock on a CPU with two threads.
    return is_near and line["collectives"] == 1 and line["programs"] == 1 and line["unchanged"] == 0


def test_the_cases_set_every_key_and_choose_every_option():
    for key in keys.TABLE:
        if key.name.partition(".")[0] in ("batch", "model", "optim"):
            cases = [on_devices.BASE | case for case in on_devices.CASES.values()]
            values = {case.get(key.name, key.default) for case in cases}
            assert values - {key.default}, key.name
            assert {*key.rule.options} - values <= NEEDS_A_GPU.get(key.name, set()), key.name
