"""The config keys of charlm, and the config files that set the keys. Other wings read the keys.

`keys` declares each key once, with its default, rule and meaning. `load` runs config files, applies overrides and checks
the resulting config.

To add a key:
1. Add one line to TABLE in `keys`, such as `Key("model.zoneout", 0.0, FRACTION, "fraction of ...")`.
2. Read the key in one place, as `config.model.zoneout`.
3. Run `pytest tests/config`. The tests fail if no code reads the key, or if another value of the key changes nothing.

Some keys affect a run only together with other keys. For example, `batch.stride` needs `batch.framing=windows`. Add the other
keys to CONTEXT in tests/config/test_keys.py.

Runs older than the key get the key's default. If the old behaviour differs from the default, set `before` to the old value.
"""
