"""Training a config into a run directory.

- `start`: what comes before JAX starts, for the program `train` and for `charlm.train`.
- `setup`: from a config to data, model and optimiser. `optim`: a new optimiser or schedule is a line there.
- `step`: the jitted step. `state`: what a training remembers, and which parameters are evaluated.
- `train`: the loop. `feeding`: the arguments of each call of the step. `judging`: what is due, the best so far, divergence.
- `opening`: opening a run directory, and going back. `record`: what is written. `signals`: requests to stop.

This wing knows nothing of sweeps or of the command line.
"""
