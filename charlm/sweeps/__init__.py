"""Many trainings: the trials of a sweep or a search, run on this machine or by SLURM.

This wing knows nothing of what a trial computes.
"""
