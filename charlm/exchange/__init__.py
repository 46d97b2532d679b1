"""Imports weights from other frameworks into run directories. An imported model can be evaluated and sampled.

`torch.py` and `keras.py` each read the files of one framework into `weights.Weights`. `weights.py` writes the run directory.
Each recurrent cell in charlm/models/cells has the functions `from_torch` and `from_keras`, which convert the arrays of a layer
to charlm's parameters. This package must not import `charlm.sweeps` or `charlm.programs`.
"""
