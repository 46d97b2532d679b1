"""The trials of a sweep that can form a pack, which is trained as one compiled program (`sweep.py --launcher=packed`).

The trials of a pack may differ only in the keys of FREE and ON_DEVICE. The program of a pack has these keys as arrays, with one
value for each trial.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from charlm.config import load

# The compiled training step of a single trial does not depend on the values of these keys: the seed and the learning rates are
# its arguments, and the initial parameters are computed before the first step.
FREE = (
    "seed",
    "optim.learning_rate",
    "optim.schedule",
    "optim.warmup_steps",
    "optim.final_fraction",
    "optim.decay_rate",
    "optim.decay_steps",
    "optim.decay_epochs",
    "optim.decay_after",
    "model.init",
    "model.init_scale",
    "model.head_scale",
    "model.forget_bias",
)
# The compiled step contains the value of each dropout key as a constant, and of the weight decay too. If a value is 0, the step
# leaves out the operation. So in a pack, a key is 0 in all trials, or above 0 in all trials.
DROPOUT = (
    "model.dropout",
    "model.dropout_input",
    "model.dropout_hidden",
    "model.dropout_output",
    "model.weight_drop",
    "model.embedding_dropout",
    "model.recurrent_dropout",
)
ON_DEVICE = ("optim.weight_decay", "optim.weight_decay_epochs", "optim.weight_rms", *DROPOUT)


def signature(config: ConfigDict) -> str:
    """Text that is equal for two configs if and only if their trials can be in the same pack."""
    return json.dumps(_compared(config), sort_keys=True)


def reason_alone(config: ConfigDict) -> str:
    """Why a trial of this config can't be in a pack, as a part of a sentence. Empty if it can."""
    values = load.flatten(config)
    if values["batch.framing"] == "documents":
        return "batch.framing=documents: the batches of two trials have different lengths"
    if values["model.kernel"] == "cudnn":
        return "model.kernel=cudnn: a call of cuDNN runs the layer of one model"
    return ""


def separating_keys(configs: Sequence[ConfigDict]) -> dict[str, list[Any]]:
    """The keys because of which these configs need several packs: key → its different values.

    For a key of ON_DEVICE, the values are `0` and `above 0`.
    """
    fields = [_compared(config) for config in configs]
    values = {key: list(dict.fromkeys(json.dumps(each[key]) for each in fields)) for key in (fields[0] if fields else ())}
    return {key: [json.loads(text) for text in texts] for key, texts in values.items() if len(texts) > 1}


def of_pack(config: ConfigDict) -> ConfigDict:
    """The config from which the program of a pack is made. The kernel is `xla`, because cuDNN runs only one model in a call."""
    return with_values(config, {"model.kernel": "xla"})


def is_on(value: Any) -> bool:
    """Whether a value of a key of ON_DEVICE is above 0. In the program of a pack, the value is an array, and is above 0."""
    return not isinstance(value, int | float) or value > 0


def values_on_device(config: ConfigDict) -> dict[str, float]:
    """The keys of ON_DEVICE that are above 0, with their values.

    `optim.weight_decay_epochs` is relative to the learning rate, so with this key the learning rate is returned, too.
    """
    flat = load.flatten(config)
    relative = ("optim.learning_rate",) if is_on(flat["optim.weight_decay_epochs"]) else ()
    return {key: value for key in (*ON_DEVICE, *relative) if isinstance(value := flat[key], float) and value > 0}


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config in which some keys have other values. The values may be arrays that JAX traces."""
    changed = config.copy_and_resolve_references()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        with changed[section].ignore_type():
            changed[section][name] = value
    return changed


def _compared(config: ConfigDict) -> dict[str, Any]:
    """The keys that must be equal in a pack, with their values. A value of ON_DEVICE becomes `0` or `above 0`."""
    fields = load.flatten(load.to_dict(config))
    on = {key: "above 0" if is_on(fields[key]) else "0" for key in ON_DEVICE}
    return {key: value for key, value in (fields | on).items() if key not in FREE}
