"""Imports weights of other frameworks into run directories. Evaluating and sampling then work as for any run.

`torch.py` and `keras.py` each read the files of one framework into `weights.Weights`. `weights.py` writes the run directory.
The functions `from_torch` and `from_keras` of a cell in charlm/models/cells convert the arrays of a layer to charlm's
parameters. This package does not import sweeps.
"""
