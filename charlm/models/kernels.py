"""Chooses the program that runs a cell over a window: the config keys `model.kernel` and `model.unroll`.

Both keys are choices of the machine. Parameters and checkpoints do not depend on them, and results change only by rounding.
Therefore a run may be resumed with other values. On a machine without a CUDA device, evaluation uses charlm's own loop,
whatever `model.kernel` is. Only a training with `model.kernel=cudnn` needs a CUDA device; see `check`. Samples are drawn by
`Cell.step`, which does not depend on the kernel.
"""

import functools

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from charlm.config import keys, load
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.models import cells
from charlm.models.cells import Cell, cudnn

# `auto` stays `xla` until a recorded check on a GPU shows that cuDNN gives the right results there and is faster.
AUTO = "xla"
# cuDNN can't change the values inside the recurrence.
INSIDE = ("model.recurrent_dropout", "model.zoneout_cell", "model.zoneout_hidden")


def chosen(config: ConfigDict | FrozenConfigDict) -> str:
    """The kernel of the config: `xla` or `cudnn`."""
    return AUTO if config.model.kernel == "auto" else config.model.kernel


def unroll(cell: Cell, config: ConfigDict | FrozenConfigDict) -> int:
    """The number of steps that XLA compiles as one iteration of the cell's loop over time."""
    return config.model.unroll if "model.unroll" in cell.keys else 1


def with_kernel(cell: Cell, config: ConfigDict | FrozenConfigDict) -> Cell:
    """The cell with the kernel of the config. Does not start JAX.

    A cell that cuDNN can't run with this config keeps its own window.
    """
    if (steps := unroll(cell, config)) > 1:
        cell = cell._replace(window=functools.partial(cell.window, unroll=steps))
    if chosen(config) == "cudnn" and "model.kernel" in cell.keys and not _unsupported(config):
        cell = cudnn.with_cudnn(cell)
    return cell


def check(config: ConfigDict) -> None:
    """Raises a UserError if the config can't be trained here with its `model.kernel`. Starts JAX."""
    if chosen(config) != "cudnn":
        return
    others = [name for name in keys.cell_names(config) if "model.kernel" not in cells.named(name).keys]
    if unsupported := [*(f"model.cell={name}" for name in others), *_unsupported(config)]:
        raise UserError(f"model.kernel=cudnn: cuDNN can't run {unsupported[0]}: set model.kernel=xla.")
    if not devices.is_cuda():
        raise UserError(
            f"model.kernel=cudnn: needs JAX for CUDA and a GPU of NVIDIA, but JAX uses {jax.default_backend()} here: "
            "set model.kernel=xla."
        )


def _unsupported(config: ConfigDict | FrozenConfigDict) -> list[str]:
    """The settings KEY=VALUE that cuDNN does not have."""
    values = load.flatten(config)
    inside = [f"{key}={values[key]}" for key in INSIDE if values[key]]
    return inside if values["model.dtype"] == "float32" else [*inside, f"model.dtype={values['model.dtype']}"]
