"""Comparing runs: tables, plots and an HTML page, made from run directories alone.

This wing must not import JAX, so that comparing starts at once.
"""
