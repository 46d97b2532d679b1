"""Weights from other frameworks, as run directories that evaluate and sample like any other.

This wing knows nothing of sweeps.
"""
