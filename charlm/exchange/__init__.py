"""Imports weights from other frameworks into run directories, and exports the weights of runs for other frameworks.

`torch.py` and `keras.py` read the files of PyTorch and of Keras into `weights.Weights`, and make such files from
`weights.Weights`. `weights.py` writes the run directory of imported weights. Each recurrent cell in charlm/models/cells has the
functions `from_torch`, `from_keras`, `to_torch` and `to_keras`, which convert between the arrays of a layer and charlm's
parameters. This package must not import `charlm.sweeps` or `charlm.programs`.
"""
