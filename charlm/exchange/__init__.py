"""Weights from other frameworks, as run directories that evaluate and sample like any other.

One file for each framework reads its files into `weights.Weights`; `weights.py` makes a run of them. How a layer's arrays
become charlm's parameters is the cell's: `from_torch` and `from_keras` of charlm/models/cells. This wing knows nothing of
sweeps.
"""
