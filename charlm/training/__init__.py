"""Training a config into a run directory.

`step` is the jitted training step, `train` the loop around it. A new optimiser or schedule is a line in `optim`. This wing
knows nothing of sweeps or of the command line.
"""
