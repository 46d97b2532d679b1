"""Tests `interface.check`, which checks cells in files of the user.

Most tests put one mistake into the cell of peephole.py.
"""

import os
import pathlib
import re

import pytest
from conftest import ROOT, TINY

from charlm.config import keys, load
from charlm.errors import UserError
from charlm.models.cells import interface, own
from charlm.training import train
from configs import base

SOURCE = pathlib.Path(__file__).with_name("peephole.py").read_text(encoding="utf-8")
ZEROS = '{"c": jnp.zeros((rows, hidden)), "h": jnp.zeros((rows, hidden))}'
STATE = "{'c': float32 (3, 8), 'h': float32 (3, 8)}"


def config_of(file, **model):
    config = base.get_config()
    config.model.update({"cell": f"{file}:PEEPHOLE", "hidden": 8, "embedding": 6} | model)
    return config


def message_of(source, folder):
    """The error message for a cell file with the text `source`.

    The beginning of the message, which names the cell, and the name of the folder are removed.
    """
    file = folder / "own.py"
    file.write_text(source)
    own.load(config_of(file))
    with pytest.raises(UserError) as caught:
        interface.check(config_of(file))
    beginning, message = f"model.cell={file}:PEEPHOLE: ", str(caught.value)
    assert message.startswith(beginning)
    return message.removeprefix(beginning).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title=", "title=3 or ", "title must be a string, but is 3."),
        ("keys=(", "keys=list(", 'keys must be a tuple of config keys, such as ("model.forget_bias",), but is [\''),
        (
            'forget_bias",)',
            'forget_bia",)',
            "an unknown config key 'model.forget_bia': the nearest key is",
        ),
        ("step=step,", "step=None,", "step must be a function, but is None."),
        ("operations=", "to_keras=1, operations=", "to_keras must be a function or None, but is 1."),
        ("operations=", "noisy_window=1, operations=", "noisy_window must be a function or None, but is 1."),
        ("config: 4 *", "config: 4.0 *", "operations(0, 8, …) must return an int, 0 or more, but returns 256.0."),
        ("hidden, config: 4", "hidden: 4", "takes 2 positional arguments but 3 were given."),
    ],
)
def test_wrong_attributes_are_refused(old, new, message, tmp_path):
    assert message in message_of(SOURCE.replace(old, new), tmp_path)


@pytest.mark.parametrize(
    ("new", "found"),
    [
        ("None", "None"),
        ("jnp.ones((rows, hidden))", "float32 (3, 8)"),
        ("jnp.zeros((hidden, rows))", "float32 (8, 3)"),
        ("jnp.zeros((rows, hidden), int)", "int32 (3, 8)"),
        ("jnp.zeros(())", "float32 ()"),
    ],
)
def test_wrong_states_are_refused(new, found, tmp_path):
    wanted = "a tree of float32 arrays that are all zero and whose first axis has the length 3, the number of rows"
    expected = f"zero_state(3, 8) must return {wanted}, but returns {found}."
    assert message_of(SOURCE.replace(ZEROS, new), tmp_path) == expected


def test_a_state_with_one_array_in_two_places_is_refused(tmp_path):
    source = SOURCE.replace(ZEROS, '(lambda z: {"c": z, "h": z})(jnp.zeros((rows, hidden)))')
    expected = "zero_state(3, 8) must return a tree of separate arrays, but returns one array in two places."
    assert message_of(source, tmp_path) == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "    return {\n",
            "    return [] and {\n",
            "parameters(6, 8, …) must return a dict with at least one parameter, but returns [].",
        ),
        (
            '"peepholes": (',
            '"peep/holes": (',
            "ASCII letters, digits and _, but returns the name 'peep/holes'.",
        ),
        (
            "zeros, (3 * hidden,)",
            "zeros, 3 * hidden",
            "(initializer, shape), where shape is a tuple of integers, but",
        ),
        (
            "jax.nn.initializers.zeros, (3",
            "lambda key, shape: jnp.zeros(3), (3",
            "the initializer of peepholes must return float32 (24,), but returns float32 (3,).",
        ),
        (
            "add(config.model.forget_bias)",
            "add(config.model.bias)",
            "initializer of bias fails: own.py line 25: unknown config key",
        ),
    ],
)
def test_wrong_parameters_are_refused(old, new, message, tmp_path):
    assert message in message_of(SOURCE.replace(old, new), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('params["recurrent_kernel"]', 'params["kernel"]', "step fails: own.py line 43: KeyError: 'kernel'."),
        ("product(h, ", "product(x_BG, ", "step fails: own.py line 43: TypeError: dot_general requires contracting dimensions"),
        ("return h, {", "return {", f"step must return a tuple (output, state), but returns {STATE}."),
        (
            "return h, {",
            "return h[:, :3], {",
            "step must return the output float32 (3, 8), but returns the output float32 (3, 3).",
        ),
        (
            '{"c": c, "h": h}',
            '{"c": c}',
            f"step must return the state {STATE}, as zero_state does, but returns the state {{'c': float32 (3, 8)}}.",
        ),
        ('"h": h}', '"h": h.astype(jnp.bfloat16)}', "but returns the state {'c': float32 (3, 8), 'h': bfloat16 (3, 8)}."),
        ('"h": h}', '"h": h[:1]}', "but returns the state {'c': float32 (3, 8), 'h': float32 (1, 8)}."),
        (
            "operations=",
            "look=lambda params, x, state, dtype: state, operations=",
            f"look must return an Inside of two dicts of float32 arrays whose first axis has the length 3, the number of rows, "
            f"but returns {STATE}.",
        ),
        ("operations=", "look=lambda params, x: None, operations=", "takes 2 positional arguments but 4 were given."),
        (
            "operations=",
            "noisy_window=lambda params, x, state, dtype, noise, unroll: (x, state), operations=",
            "noisy_window without noise must return the output float32 (2, 3, 8), but returns the output int32 (2, 3).",
        ),
        ("params, rows, dtype, ids: params", "params: params", "takes 1 positional argument but 4 were given."),
        ("table_VI: {**params, ", "table_VI: {", "step fails: own.py line 43: KeyError: 'recurrent_kernel'."),
    ],
)
def test_wrong_steps_are_refused(old, new, message, tmp_path):
    assert message in message_of(SOURCE.replace(old, new), tmp_path)


@pytest.mark.parametrize(
    ("noise", "old", "new", "message"),
    [
        ("weight_drop", '"recurrent_kernel"', '"kernel"', "'kernel': float32 (8, 32), 'peepholes': float32 (24,)}."),
        ("recurrent_dropout", "", "", "step() got an unexpected keyword argument 'factor_BH'."),
        (
            "state_noise",
            ZEROS,
            ZEROS.replace("}", ', "n": jnp.zeros((rows, hidden))}'),
            f"the state must be h, or c and h, since keys has model.state_noise, but is {STATE[:-1]}, 'n': float32 (3, 8)}}.",
        ),
        ("zoneout_hidden", "", "", f"the state must be h, since keys has model.zoneout_hidden, but is {STATE}."),
    ],
)
def test_keys_of_noise_whose_needs_the_cell_does_not_meet(noise, old, new, message, tmp_path):
    source = SOURCE.replace("keys=(", f'keys=("model.{noise}", ').replace(old, new)
    assert message in message_of(source, tmp_path)


def test_a_cell_with_the_keys_of_kernels_must_take_unroll_and_have_the_parameters_of_the_lstm(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(SOURCE.replace("keys=(", 'keys=("model.unroll", '))  # the window is by_steps(step)
    own.load(config_of(file))
    interface.check(config_of(file, unroll=2))
    window = "window=lambda p, x, s, dtype, n=None: by_steps(step)(p, x, s, dtype)"
    file.write_text(file.read_text().replace("window=by_steps(step)", window))
    own.load(config_of(file))
    interface.check(config_of(file))
    with pytest.raises(UserError, match=r"window fails: .* got an unexpected keyword argument 'unroll'"):
        interface.check(config_of(file, unroll=2))
    found = message_of(SOURCE.replace("keys=(", 'keys=("model.kernel", '), tmp_path)
    assert "'peepholes': float32 (24,)" in found.partition("but is")[2]
    assert "'bias': (32,)}, since keys has model.kernel" in found.partition("but is")[0]


def test_a_cell_whose_step_takes_the_factor_of_recurrent_dropout(tmp_path):
    source = SOURCE.replace("keys=(", 'keys=("model.recurrent_dropout", ').replace(
        "state, dtype):", "state, dtype, factor_BH=1.0):"
    )
    file = tmp_path / "own.py"
    file.write_text(source.replace("jnp.tanh(u_z) * i", "jnp.tanh(u_z) * i * factor_BH"))
    own.load(config_of(file))
    interface.check(config_of(file))


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (
            "lambda p, x, s, dtype, n=None: (by_steps(step)(p, x, s, dtype)[0].swapaxes(0, 1), s)",
            "window must return the output float32 (2, 3, 8), but returns the output float32 (3, 2, 8).",
        ),
        (
            "lambda p, x, s, dtype, n=None: (by_steps(step)(p, x, s, dtype)[0], s['c'])",
            f"window must return the state {STATE}, as zero_state does, but returns the state float32 (3, 8).",
        ),
        (
            "lambda p, x, s, dtype: by_steps(step)(p, x, s, dtype)",
            "takes 4 positional arguments but 5 were given.",
        ),
    ],
)
def test_wrong_windows_are_refused(window, message, tmp_path):
    found = message_of(SOURCE.replace("window=by_steps(step)", f"window={window}"), tmp_path)
    assert re.match("window( with noise_keys_B fails)?", found)
    assert message in found


def test_a_mistake_that_fails_only_in_a_second_layer_is_found(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(SOURCE.replace("product(x, kernel, dtype)", "x @ kernel.T"))
    own.load(config_of(file))
    interface.check(config_of(file, layers=1))
    with pytest.raises(UserError, match=r"PEEPHOLE: step fails: .*own\.py line 42: TypeError: dot_general requires"):
        interface.check(config_of(file, layers=2))


@pytest.mark.parametrize(("hidden", "encoding"), [(1, "embedding"), (2, "onehot"), (8, "scalar")])
def test_the_checks_accept_the_cells_of_the_package(hidden, encoding, tmp_path):
    names, file = keys.KEYS["model.cell"].rule.options, tmp_path / "own.py"
    file.write_text("".join(f"from charlm.models.cells.{name} import CELL as {name.upper()}\n" for name in names))
    for name in names:
        config = config_of("", cell=f"{file}:{name.upper()}", hidden=hidden, embedding=2, input=encoding, dtype="bfloat16")
        own.load(config)
        interface.check(config)


def test_a_run_with_a_wrong_cell_does_not_begin(tmp_path, small):
    file = tmp_path / "own.py"
    file.write_text(SOURCE.replace("return h, {", "return h[:, :3], {"))
    config = load.load(os.fspath(ROOT / TINY), small | {"model.cell": f"{file}:PEEPHOLE"})
    with pytest.raises(UserError, match=r"step must return the output float32 \(3, 8\), but returns"):
        train.train(config, os.fspath(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["NORM", "mlp"])
def test_a_cell_with_a_name_that_the_network_uses_is_refused(name, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(SOURCE.replace("PEEPHOLE =", f"{name} ="))
    config = config_of("", cell=f"{file}:{name}", norm=True, mlp=2)
    own.load(config)
    with pytest.raises(UserError, match=rf":{name}: the network has parameters named {name.lower()}_0: give the cell another"):
        interface.check(config)
