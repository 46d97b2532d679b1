"""The run directory. This package reads and writes the files of a run, and makes all calls to Orbax.

It does not depend on the training code.
"""
