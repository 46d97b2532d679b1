"""Names the trials of a sweep, and matches trials with existing runs by their configs."""

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping

from charlm.config import keys as config_keys
from charlm.config import load

MAX_NAME_LENGTH = 100  # in characters; file systems allow names of 255 bytes


def trial_name(overrides: Mapping[str, object]) -> str:
    """The name of a trial's directory, such as `hidden=128,learning_rate=0.002,seed=1`.

    The keys are in the order of `charlm/config/keys.py`, except that the seed is last. Each key is shortened to the
    shortest ending that no other key has. Of a path, the name has only the last part. Characters that are unsafe in paths are
    replaced by `_`, and long names are cut. If a name was changed in this way, a hash is added at its end, so that the name is
    unique.
    """
    keys = sorted((key for key in config_keys.KEYS if key in overrides), key=lambda key: key == "seed")
    values = {key: _value_text(overrides[key]) for key in keys}
    shown = {key: _last_part(values[key]) if key in config_keys.SHOWN_BY_LAST_PART else values[key] for key in keys}
    # In strings, `+` is also replaced, because `+` separates the values of a tuple.
    unsafe = {key: r"[^A-Za-z0-9._-]" if isinstance(overrides[key], str) else r"[^A-Za-z0-9._+-]" for key in keys}
    safe = {key: re.sub(unsafe[key], "_", shown[key]) for key in keys}
    name = ",".join(f"{config_keys.short(key)}={safe[key]}" for key in keys) or "base"
    if safe == values and len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME_LENGTH - 9]}-{digest}"


def match(trials: Mapping[str, str], existing: Mapping[str, str | None]) -> dict[str, str]:
    """The name of the run of each trial: its own name, or the name of an existing run that has the same config.

    No two trials get the same run. They can have the same digest if they differ in a key that changes no result.

    Args:
      trials: name → digest of the config, for all trials of the sweep.
      existing: name → digest of the config, for all existing runs. Of two runs with the same digest, the first is used. None
        stands for an unknown config.
    """
    free: dict[str, str] = {}  # digest → name of the run
    for name, digest in existing.items():
        if name not in trials and digest is not None:
            free.setdefault(digest, name)
    return {name: name if name in existing else free.pop(digest, name) for name, digest in trials.items()}


def digest(fields: Mapping) -> str:
    """Digest of the keys that change results, with their values. `fields` is a config as a nested or flat dict."""
    return hashlib.sha256(load.results_config(fields).encode()).hexdigest()[:16]


def _value_text(value: object) -> str:
    if isinstance(value, tuple | list):
        return "+".join(map(_value_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _last_part(path: str) -> str:
    return pathlib.PurePath(path).name or path
