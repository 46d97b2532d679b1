"""Tests which trials can form a pack."""

import numpy as np
import pytest
from conftest import TINY
from test_keys import another

from charlm.config import keys, load, packs


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(load.RECIPES.parent)


def config_of(**overrides):
    return load.load(TINY, {key.replace("__", "."): value for key, value in overrides.items()})


def test_only_the_keys_of_the_table_may_differ_in_a_pack():
    base = load.flatten(config_of())
    on_device = dict.fromkeys(packs.ON_DEVICE, 0.25)
    signature = packs.signature(load.load(TINY, on_device))
    for key in keys.TABLE:
        value = another(key, base[key.name] if base[key.name] is not None else "a")
        try:
            changed = load.load(TINY, on_device | {key.name: value})
        except load.UserError:  # the value does not fit the other keys, or is not a value of the key at all
            continue
        assert (packs.signature(changed) == signature) == (key.name in packs.FREE or key.name in packs.ON_DEVICE), key.name
    assert set(packs.FREE) | set(packs.ON_DEVICE) <= set(keys.KEYS)


def test_a_share_of_0_and_a_share_above_0_are_not_in_one_pack():
    without, low, high = (config_of(model__dropout=value) for value in (0.0, 0.1, 0.2))
    assert packs.signature(low) == packs.signature(high) != packs.signature(without)
    assert packs.separating_keys([low, high]) == {}
    assert packs.separating_keys([low, without, config_of(model__hidden=12)]) == {
        "model.dropout": ["above 0", "0"],
        "model.hidden": [32, 12],
    }
    assert packs.values_on_device(high) == {"model.dropout": 0.2}
    assert [packs.is_on(value) for value in (0.0, 0.1, np.zeros(3))] == [False, True, True]


def test_values_are_replaced_only_in_a_copy():
    config, array = config_of(optim__weight_decay=0.5), np.float32(0.25)
    assert packs.with_values(config, {"optim.weight_decay": array}).optim.weight_decay is array
    assert config.optim.weight_decay == 0.5
    assert load.flatten(packs.with_values(config, {})) == load.flatten(config)


def test_batches_of_documents_are_not_packed():
    assert packs.reason_alone(config_of()) == ""
    reason = packs.reason_alone(config_of(batch__framing="documents", corpus__documents="lines"))
    assert reason.startswith("batch.framing=documents")


def test_trials_that_use_cudnn_are_not_packed_and_a_pack_never_uses_it():
    assert packs.reason_alone(config_of(model__kernel="cudnn")).startswith("model.kernel=cudnn")
    config = config_of()
    assert packs.of_pack(config).model.kernel == "xla"
    assert config.model.kernel == "auto"
