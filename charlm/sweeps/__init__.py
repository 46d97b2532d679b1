"""Runs many trainings: the trials of a sweep or a search, on this machine or on a SLURM cluster.

- `sweep` builds lists of trials, and names the trials.
- `launch` runs trials as processes on this machine.
- `slurm` submits trials as SLURM jobs.
- `search` searches a space of configs with Optuna.

The code here does not depend on the computation of a trial.
"""
