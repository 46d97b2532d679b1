"""Runs many trainings on this machine or on a SLURM cluster. Each training is a trial of a sweep or of a search.

- `sweep` builds lists of trials, and manages the folder of a sweep.
- `naming` names trials, and finds runs with the same config.
- `launch` runs trials as processes on this machine. `packed` divides the trials into packs; one process trains a pack.
- `status` reads the status of a trial. `display` shows the status of all trials on the terminal. `conclusion` says in words how
  the trials ended.
- `slurm` submits trials as SLURM jobs.
- `search` searches a space of configs with Optuna.

The code in this package starts each trial as a program. It does not import the training code.
"""
