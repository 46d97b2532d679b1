"""The default values of all config keys. Other configs start from these values.

charlm/config/keys.py declares the keys. `charlm train --helpkeys` lists them.
"""

from ml_collections import ConfigDict

from charlm.config import keys
from charlm.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns every key with its default. A config that takes an argument must not pass the argument to this function."""
    if arg is not None:
        raise UserError(f"--config=FILE:{arg}: this config takes no argument; write --config=FILE.")
    return keys.defaults(type_safe=False)  # charlm checks types when it loads the config; its error can name file and line
