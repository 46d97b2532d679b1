"""Trains the model that a config describes, and writes a run directory.

- `start` prepares the machine before JAX starts, for the program `train` and for `charlm.train`.
- `setup` makes data, model and optimiser from a config.
- `optim` holds the optimisers and the learning-rate schedules.
- `step` defines the jitted training step.
- `state` defines the training state, the part of it that a checkpoint saves, and which parameters are evaluated.
- `train` is the training loop. `requests` has what the loop asks of the devices.
- `packing` trains several trials of a sweep as one compiled program.
- `feeding` makes the arguments of each call of the training step.
- `judging` decides whether a log row, an evaluation or a checkpoint is due at a step, keeps the best evaluation, and detects
  divergence.
- `opening` opens a run directory, and goes back to a checkpoint after a divergence.
- `record` writes metrics, samples and checkpoints.
- `signals` handles SIGINT and SIGTERM.

This package does not import sweeps or command-line code.
"""
