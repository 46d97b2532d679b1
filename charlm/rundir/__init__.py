"""Reads and writes the files of a run directory. No other package of charlm calls Orbax.

This package does not depend on the training code.
"""
