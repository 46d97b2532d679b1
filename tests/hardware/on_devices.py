"""Trains configs on several numbers of virtual devices, and prints how much the results differ.

test_on_devices.py starts this program, because the number of devices is fixed when JAX starts:

    PYTHONPATH=. XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/hardware/on_devices.py TEXT 1,8 CASE ...

TEXT is a text file, `1,8` are the numbers of devices, and CASE is a key of CASES. For each case and each number of devices
except the first, the program prints one line with a JSON object:

- case, devices: the case and the number of devices;
- metrics, evaluation, state: how much the metrics of the steps, the loss of an evaluation after the last step, and the state
  after the last step differ from those with the first number of devices;
- unchanged: the number of arrays of parameters that the training did not change;
- programs: the number of programs that JAX compiled for the steps;
- collectives: the number of operations in this program that let devices communicate.

A difference of metrics and losses is relative. A difference of the state is relative to the largest change of an array during
the training.
"""

import dataclasses
import json
import pathlib
import re
import sys

from charlm.config import keys

MOST_DEVICES = 8
PEEPHOLE = f"{pathlib.Path(__file__).parents[1] / 'models' / 'cells' / 'peephole.py'}:PEEPHOLE"

# One device has 16 rows and 8 devices have 2 rows each, because some code of the cells depends on the number of rows.
BASE = {
    "batch.size": 16,
    "batch.length": 32,
    "model.hidden": 8,
    "model.layers": 1,
    "model.embedding": 6,
    "model.dropout": 0.2,
    "optim.learning_rate": 0.02,
    "optim.eps": 1e-4,  # with the default, Adam's first steps would enlarge rounding errors of gradients that are nearly 0
    "train.steps": 4,
    "train.steps_per_call": 2,
    "eval.lanes": 16,
    "eval.burn_in": 10,
}
# All regularisers, and the keys of single cells. A cell ignores the keys that it does not have.
NOISE = {
    "model.layers": 2,
    "model.dropout_kind": "variational",
    "model.dropout_input": 0.1,
    "model.dropout_hidden": 0.3,
    "model.dropout_output": 0.1,
    "model.weight_drop": 0.3,
    "model.embedding_dropout": 0.1,
    "model.recurrent_dropout": 0.1,
    "model.zoneout_cell": 0.4,
    "model.zoneout_hidden": 0.1,
    "model.state_noise": 0.3,
    "model.ar": 2.0,
    "model.tar": 1.0,
    "model.forget_bias": 0.5,
    "model.mogrifier_rounds": 3,
    "model.mogrifier_rank": 2,
    "model.slstm_heads": 2,
    "model.unroll": 4,
}
DOCUMENTS = {"corpus.documents": "lines", "batch.framing": "documents"}
CELLS = keys.KEYS["model.cell"].rule.options
# Together, the cases set every key of `batch`, `model` and `optim` and choose every option of these keys.
OPTIONS = {
    "a cell of the user's own": {"model.cell": PEEPHOLE, "train.steps_per_call": 1, "optim.name": "lion"},
    "blocks": {
        "model.cell": ("lstm", "mingru"),
        "model.layers": 2,
        "model.embedding": 8,
        "model.residual": True,
        "model.norm": True,
        "model.mlp": 2,
        "model.tie": True,
        "model.init": "glorot",
        "optim.name": "adamw",
        "optim.weight_decay_epochs": 0.5,
        "optim.weight_rms": 0.01,
        "optim.beta1": 0.8,
        "optim.beta2": 0.9,
        "optim.average": "ema",
        "optim.average_decay": 0.8,
        "batch.shift": False,
    },
    "widths": {
        "model.layers": 2,
        "model.widths": (8, 5),
        "model.tie": True,
        "model.init": "axon",
        "optim.name": "muon",
        "optim.weight_decay": 0.1,
        "optim.muon_momentum": 0.8,
        "optim.average": "tail",
        "optim.average_last": 0.5,
    },
    "one-hot chunks": {
        "model.input": "onehot",
        "model.init": "uniform",
        "model.init_scale": 0.5,
        "model.head_scale": 0.5,
        "batch.framing": "chunks",
        "batch.shuffle": False,
        "optim.name": "rmsprop",
        "optim.eps_form": "keras",
        "optim.clip_norm": 0.0,
        "optim.clip_value": 0.01,
        "optim.schedule": "exponential",
        "optim.decay_rate": 0.7,
        "optim.decay_steps": 2,
        "optim.decay_after": 1.0,
    },
    "scalar windows": {
        "model.input": "scalar",
        "model.init": "pytorch",
        "model.tar": 1.0,
        "batch.framing": "windows",
        "batch.stride": 3,
        "optim.name": "sgd",
        "optim.momentum": 0.9,
        "optim.weight_decay": 0.1,
        "optim.decay_biases": True,
        "optim.schedule": "step",
        "optim.decay_epochs": 0.01,
    },
    "documents": DOCUMENTS
    | {
        "model.ar": 2.0,
        "model.tar": 1.0,
        "batch.start_symbol": False,
        "batch.bucket": 8,
        "optim.name": "adan",
        "optim.beta3": 0.8,
        "optim.schedule": "trapezoid",
        "optim.final_fraction": 0.1,
        "optim.warmup_steps": 2,
    },
    "documents with counted padding": DOCUMENTS
    | {
        "model.tar": 1.0,
        "batch.padding": "counted",
        "optim.name": "adafactor",
        "optim.momentum": 0.5,
    },
    "bfloat16": {"model.dtype": "bfloat16", "model.precision": "float32", "model.kernel": "xla"},
    "nt_asgd": {"optim.average": "nt_asgd", "optim.average_patience": 2, "optim.schedule": "constant"},
    "schedule-free": {"optim.name": "schedule_free_adamw", "optim.schedule": "constant"},
}
CASES = (
    {cell: {"model.cell": cell} for cell in CELLS}
    | {f"{cell} with all regularisers": NOISE | {"model.cell": cell} for cell in CELLS}
    | OPTIONS
)


def main(text: str, numbers: list[int], names: list[str]) -> None:
    import jax
    import numpy as np

    from charlm.config import load
    from charlm.models.cells import chunks, layernorm_lstm, own
    from charlm.training import setup, state

    assert len(jax.devices()) == MOST_DEVICES
    chunks.CHUNK_BYTES = 0  # with the usual CHUNK_BYTES, a small window is always one chunk
    # With the usual EPSILON, layer normalisation multiplies the first, small states by up to 316 at each step. On one device, a
    # change of the parameters by 1e-7 then changes the norm of the gradient by 2e-2.
    layernorm_lstm.EPSILON = 1.0
    for name in names:
        config = load.load("configs/tiny.py", BASE | CASES[name] | {"corpus.path": text})
        own.load(config)
        made = setup.set_up(config)
        make_initial, seed = state.initial_state_maker(made), np.uint32(made.seed)
        results = {number: trained(made, make_initial(seed), number) for number in numbers}
        initial, expected = jax.device_get(make_initial(seed)), results[numbers[0]]
        for number in numbers[1:]:
            found = results[number]
            line = {
                "case": name,
                "devices": number,
                "metrics": relative(found["metrics"], expected["metrics"]),
                "evaluation": relative(found["evaluation"], expected["evaluation"]),
                "state": of_changes(found["state"], expected["state"], initial),
                "unchanged": unchanged(found["state"].params, initial.params),
                "programs": found["programs"],
                "collectives": found["collectives"],
            }
            print(json.dumps(line), flush=True)


def trained(made, initial, number: int) -> dict:
    """Trains on this number of devices, with the functions that the program `train` uses."""
    import jax
    import numpy as np

    from charlm.hardware import devices
    from charlm.training import feeding, state
    from charlm.training.requests import Alone, Evaluation, Steps

    made = dataclasses.replace(made, mesh=devices.mesh(made.batches.rows, number))
    assert made.mesh.size == number
    place = Alone(made, state.placed(initial, made.mesh))
    make_arguments, progress, metrics = feeding.arguments_maker(made), state.Progress(), []
    while progress.step < made.total_steps:
        count = feeding.steps_at_once(made, progress.step)
        arguments = make_arguments(progress, count, [])
        metrics.append(place.answer(Steps(progress.step, count, arguments))())
        progress.step += count
        if made.averaging and made.averaging.kind == "nt_asgd" and progress.step == 2:
            place.state = state.with_begun_average(place.state)
    step = place._one if count == 1 else place._many
    text = step.lower(place.state, *arguments).compile().as_text()
    nats, chars = place.answer(Evaluation(progress.step, []))
    return {
        "metrics": np.concatenate([np.ravel(leaf) for each in metrics for leaf in jax.tree.leaves(each)]),
        "evaluation": np.array([nats / chars]),
        "state": jax.device_get(place.state),
        "programs": step._cache_size(),
        "collectives": len(re.findall(r" (?:all-|reduce-scatter|collective-)[\w-]*\(", text)),
    }


def relative(found, expected) -> float:
    return float((abs(found - expected) / abs(expected)).max())


def of_changes(found, expected, initial) -> float:
    """The largest difference of two arrays of the state, relative to the largest change of this array."""
    import jax
    import numpy as np

    def ratio(*leaves) -> float:
        found, expected, initial = (np.asarray(leaf, np.float64) for leaf in leaves)
        difference, change = abs(found - expected).max(), abs(expected - initial).max()
        return float(difference / change) if difference else 0.0

    return float(np.max([*map(ratio, *map(jax.tree.leaves, (found, expected, initial)))]))


def unchanged(params, initial) -> int:
    import jax
    import numpy as np

    return sum(np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (params, initial)), strict=True))


if __name__ == "__main__":
    main(sys.argv[1], [int(number) for number in sys.argv[2].split(",")], sys.argv[3:])
