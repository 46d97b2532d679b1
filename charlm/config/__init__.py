"""The keys of charlm, and the config files that set them.

`keys` declares every key once. `load` runs a config file, applies overrides and checks the result. This wing knows nothing
of what the keys do.
"""
