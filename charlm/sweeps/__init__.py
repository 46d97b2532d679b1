"""Runs many trainings: the trials of a sweep or a search, on this machine or on a SLURM cluster.

The code here does not depend on the computation of a trial.
"""
