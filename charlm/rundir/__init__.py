"""Reads and writes the files of a run directory. No other package of charlm calls Orbax.

- `run` reads and writes all files except the checkpoints and the files for TensorBoard.
- `directory` checks whether a directory holds a run, and creates the directory of a new run.
- `environment` describes a start of a training: command, code, packages and machine.
- `checkpoint` saves and restores checkpoints. `events` writes the files for TensorBoard.

This package does not depend on the training code.
"""
