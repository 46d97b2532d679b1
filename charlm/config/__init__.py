"""The config keys of charlm, and the loading of config files. The other packages inside charlm/ read the keys.

- `keys` declares each key once, with its default, its allowed values and its meaning.
- `rules` has the rules for allowed values.
- `checking` converts values from text, and checks them.
- `help_keys` makes the text of `--helpkeys`.
- `load` runs a config file, applies overrides such as `--config.model.hidden=384`, and checks the resulting config.

To add a key:
1. Add one line to TABLE in `keys`, such as `Key("model.zoneout", 0.0, FRACTION, "fraction of ...")`.
2. Read the key in one place, as `config.model.zoneout`.
3. Run `pytest tests/config`. The tests fail if no code reads the key, or if two values of the key give equal runs.

Some keys affect a run only together with other keys. For example, `batch.stride` needs `batch.framing=windows`. If your key
needs other keys, add these other keys to CONTEXT in tests/config/test_keys.py.

The config of a run that was made before the key existed gets the key's default. If charlm behaved differently before the key
existed, set `Key.before` to the value that gives the old behaviour.
"""
