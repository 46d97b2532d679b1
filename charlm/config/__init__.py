"""The keys of charlm, and the config files that set them. This wing does not know what the keys do.

`keys` declares each key once, with its default, rule and meaning. `load` runs config files, applies overrides and checks
the result.

To add a key:
1. Add one line to TABLE in `keys`, such as `Key("model.zoneout", 0.0, FRACTION, "fraction of ...")`.
2. Read it in one place, as `config.model.zoneout`.
3. Run `pytest tests/config`. It fails if nothing reads the key, or if another value changes nothing. If the key matters only
   together with others, as `batch.stride` with windows, name these in CONTEXT of tests/config/test_keys.py.

Runs that are older than the key take its default, or `before` where the old behaviour was another one.
"""
