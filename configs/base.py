"""The defaults, for other configs to change. charlm/config/keys.py declares the keys; `charlm train --helpkeys` lists them."""

from ml_collections import ConfigDict

from charlm.config import keys
from charlm.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    """Every key with its default. Takes no argument; configs that take one must not pass it on."""
    if arg is not None:
        raise UserError(f"--config=FILE:{arg}: this config takes no argument; write --config=FILE.")
    return keys.defaults(type_safe=False)  # the types are checked when the config is loaded, which names file and line
