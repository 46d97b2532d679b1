"""The parts of the check. This module imports neither JAX nor the parts."""

from typing import NamedTuple


class Part(NamedTuple):
    """A part of the check.

    Attributes:
      module, function: where the part is; see `part.py`.
      share: the share of the whole time that the part may take. Time that a part does not use is given to the later parts.
      about: what the part does, for the table.
      on_device: whether the process of the part itself computes on the device. The processes of other parts only start programs
        that do, and read their run directories.
    """

    module: str
    function: str
    share: float
    about: str
    on_device: bool = False


PARTS = {
    "accuracy": Part("accuracy", "run", 0.24, "every cell and kernel equals NumPy in float64", on_device=True),
    "resume": Part("resume", "run", 0.10, "a run that was killed and resumed equals an unbroken run"),
    "checkpoint": Part("checkpoint", "run", 0.12, "checkpoints of this device work on the CPU, and the other way round"),
    "speed": Part("speed", "of_charlm", 0.24, "speed and memory of charlm's training step"),
    "torch": Part("speed", "of_torch", 0.07, "speed and memory of torch.nn.LSTM"),
    "training": Part("training", "run", 0.12, "a whole training reaches the recorded loss"),
    "packed": Part("packed", "run", 0.08, "16 trials as one program equal trials that are trained alone"),
    "devices": Part("devices", "run", 0.03, "several devices give the losses of one device"),
}
