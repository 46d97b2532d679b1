"""Compares runs in tables, plots and an HTML page. All data comes from run directories.

This wing must not import JAX, because importing JAX is slow.
"""
