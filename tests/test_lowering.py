"""Tests the programs that JAX lowers for each platform. Lowering for a GPU or TPU needs no such device.

- The programs of training, evaluation and sampling lower for every platform.
- What only makes XLA:CPU faster is in the programs for a CPU alone. The other programs compute the same values.
- `model.precision` sets the precision of all products in the programs for GPUs and TPUs, and changes no program for a CPU.
"""

import re

import jax
import numpy as np
import pytest
from conftest import slow
from jax.sharding import Mesh

from charlm.config import keys
from charlm.data import batches
from charlm.inference import dynamic, evaluate
from charlm.models import platform, products, stack
from charlm.models.cells import chunks
from charlm.training import optim
from charlm.training import state as state_module
from charlm.training import step as step_module
from configs import base

ONE_DEVICE = Mesh(np.array(jax.devices()[:1]), ("rows",))
RATE, SEED = np.float32(1), np.uint32(0)
VOCAB, STEPS = 11, 32


def config_of(**model):
    config = base.get_config()
    config.model.update({"hidden": 16, "embedding": 8} | model)
    return config


def batch_of(rows):
    ids_N = np.random.default_rng(0).integers(0, VOCAB, 1000).astype(np.uint8)
    return batches.Stream(ids_N, rows, STEPS, True, 0).batch_at(0)


def traced(config, rows, steps_per_call=1):
    """The programs of training, evaluation and sampling, traced for the platform that the context sets."""
    functions, optimizer = stack.functions(config, VOCAB), optim.optimizer(config, 1)
    state = jax.eval_shape(lambda: state_module.initial_state(functions, optimizer, rows, 0))
    batch = batch_of(rows)
    step, call_arguments = step_module.make_train_step(functions, optimizer, ONE_DEVICE), (batch, RATE)
    if steps_per_call > 1:
        step = step_module.several(step)
        call_arguments = jax.tree.map(lambda leaf: np.stack([leaf] * steps_per_call), call_arguments)
    weights = jax.eval_shape(lambda params: functions.stepwise(params, 1), state.params)
    carry = jax.eval_shape(lambda: functions.zero_carry(1))
    return {
        "train": jax.jit(step, donate_argnums=0).trace(state, *call_arguments, SEED),
        "evaluate": jax.jit(evaluate.make_window(functions)).trace(state.params, batch, state.carry),
        "lay out": jax.jit(functions.stepwise, static_argnums=1).trace(state.params, 1),
        "sample": jax.jit(functions.step).trace(weights, np.zeros(1, np.int32), carry),
    }


def lowered(config, names, rows=4, steps_per_call=1):
    """Platform → program → text. The programs are traced once, so all platforms must be CPUs, or none of them."""
    with platform.lowering_for(names[0]):
        programs = traced(config, rows, steps_per_call)
    return {
        name: {program: each.lower(lowering_platforms=(name,)).as_text() for program, each in programs.items()}
        for name in names
    }


@pytest.mark.parametrize(
    ("encoding", "rows", "steps_per_call", "dtype"),
    [
        ("embedding", 4, 1, "float32"),
        ("onehot", 16, 2, "bfloat16"),
        slow("embedding", 4, 1, "bfloat16"),
        slow("onehot", 16, 2, "float32"),
        slow("scalar", 1, 1, "float32"),
        slow("scalar", 1, 1, "bfloat16"),
    ],
)
def test_training_evaluation_and_sampling_lower_for_every_platform(encoding, rows, steps_per_call, dtype):
    config = config_of(dropout=0.3, dtype=dtype, input=encoding)
    if encoding == "embedding":
        config.model.update({"dropout_input": 0.1, "embedding_dropout": 0.1, "weight_drop": 0.3, "dropout_kind": "variational"})
        config.model.update({"recurrent_dropout": 0.1, "zoneout_cell": 0.4, "zoneout_hidden": 0.1, "ar": 2.0, "tar": 1.0})
    for names in (["cpu"], ["cuda", "rocm", "tpu"]):
        for texts in lowered(config, names, rows, steps_per_call).values():
            assert "stablehlo.while" in texts["train"]
            assert "stablehlo.while" in texts["evaluate"]
            assert "stablehlo.dot_general" in texts["sample"]
            assert texts["lay out"]


def cpu_measures(texts) -> set[str]:
    """Which measures that only help XLA:CPU are in the texts. Each chunk has 16 of the 32 steps, and there are 4 rows."""
    patterns = {
        "barrier": "optimization_barrier",
        "layout": "LayoutConstraint",
        "chunks": r"tensor<2x16x4x",
        "bfloat16 products in float32": "reduce_precision.*e8m7",
        "a block for each gate": r"dot_general.*batching_dims = \[0\]",
    }
    return {name for name, pattern in patterns.items() if re.search(pattern, "".join(texts.values()))}


def test_measures_for_a_cpu_are_in_no_program_for_a_gpu_or_tpu(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 0)  # with the usual CHUNK_BYTES, a small window is one chunk on a CPU too
    config = config_of(cell=keys.CELLS, layers=len(keys.CELLS), dtype="bfloat16")
    on_cpu = lowered(config, ["cpu"])["cpu"]
    assert len(cpu_measures(on_cpu)) == 5
    for texts in lowered(config, ["cuda", "tpu"]).values():
        assert cpu_measures(texts) == set()
        # The minGRU and the minLSTM have no loop. The other cells have one loop in each direction.
        loops = len(keys.CELLS) - 2
        assert texts["train"].count("stablehlo.while") == 2 * loops
        assert texts["evaluate"].count("stablehlo.while") == loops
    assert on_cpu["train"].count("stablehlo.while") > 2 * len(keys.CELLS)


@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
def test_the_programs_for_a_gpu_compute_the_same_values_as_the_programs_for_a_cpu(dtype, monkeypatch):
    """Both programs run on the CPU. The program for a CPU has two chunks, and 16 rows fill the widest vector of a CPU.

    The first three cells have code for a CPU of their own. The other cells with a loop have the code of the fourth.
    """
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 0)
    cells = ("lstm", "rnn", "gru", "slstm")
    config = config_of(cell=cells, layers=len(cells), dtype=dtype, residual=True, embedding=16)
    functions = stack.functions(config, VOCAB)
    params, batch = jax.jit(functions.init)(jax.random.key(0)), batch_of(16)

    def computed(params):
        def loss(params):
            logits_BSV, carry = functions.apply(params, batch, functions.zero_carry(16))
            return (logits_BSV * np.sin(np.arange(logits_BSV.size)).reshape(logits_BSV.shape)).mean(), (logits_BSV, carry)

        gradient, outputs = functions.grad(loss, has_aux=True)(params)
        drawn = functions.step(functions.stepwise(params, 1), np.array([3]), functions.zero_carry(1))
        return gradient, outputs, drawn

    results = {}
    for name in ("cpu", "cuda"):
        with platform.lowering_for(name):
            results[name] = jax.jit(computed)(params)
    # Sums in another order change the last bit of a float32. This can change how a value is rounded to bfloat16.
    tolerance = {"float32": 2e-5, "bfloat16": 2e-2}[dtype]
    for found, expected in zip(*map(jax.tree.leaves, (results["cuda"], results["cpu"])), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance * max(1e-6, np.abs(expected).max()))


def precisions(text) -> set[str]:
    """The precisions of the products in the text of a program."""
    found = re.findall(r"stablehlo\.dot_general.*?(?:precision = \[(\w+), (\w+)\]|$)", text, flags=re.MULTILINE)
    return {each for pair in found for each in pair}


def test_model_precision_changes_all_products_on_a_gpu_or_tpu_and_nothing_on_a_cpu():
    # JAX traces the backward passes of these two cells after the forward pass of the whole model.
    on_cpu = []
    for precision, expected in (("tf32", "HIGH"), ("float32", "HIGHEST")):
        config = config_of(cell=("lstm", "slstm"), layers=2, precision=precision)
        on_cpu.append(lowered(config, ["cpu"])["cpu"])
        for texts in lowered(config, ["cuda", "tpu"]).values():
            assert [precisions(texts[program]) for program in ("train", "evaluate", "sample")] == 3 * [{expected}]
    assert on_cpu[0] == on_cpu[1]
    assert precisions(on_cpu[0]["train"]) == {"DEFAULT"}


def test_dynamic_evaluation_has_the_precision_of_the_config():
    functions = stack.functions(config_of(layers=1, precision="float32"), VOCAB)
    params, carry = jax.eval_shape(functions.init, jax.random.key(0)), jax.eval_shape(lambda: functions.zero_carry(1))
    arguments = params, carry, params, params, params, np.zeros((2, 9), np.int32), np.ones((2, 8), np.float32)
    with platform.lowering_for("cuda"):
        learning = dynamic.Evaluator(functions)._learn.trace(*arguments)
    assert precisions(learning.lower(lowering_platforms=("cuda",)).as_text()) == {"HIGHEST"}


def test_the_precisions_are_the_values_of_the_key():
    assert set(products.PRECISIONS) == set(keys.KEYS["model.precision"].rule.options)


def test_jax_traces_a_compiled_function_again_for_another_platform():
    function = jax.jit(platform.cpu_barrier)
    assert jax.default_backend() == "cpu"
    for name, is_cpu in (("cpu", True), ("cuda", False), ("cpu", True), ("tpu", False)):
        with platform.lowering_for(name):
            assert ("optimization_barrier" in function.lower(1.0).as_text()) == is_cpu
    assert platform.is_cpu()  # without the context, the platform is that of JAX's devices
