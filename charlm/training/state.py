"""What a training remembers, and how it is found again: the state of the step, and the progress of the loop."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm import measures, progress
from charlm.errors import Failure
from charlm.hardware import devices, processes
from charlm.models import stack
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training.setup import Setup


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
      step: int32 scalar, steps done. Randomness is folded from the seed and this number; no key is stored.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    carry: tuple


@dataclasses.dataclass
class Sums:
    """Sums of `StepMetrics` over some steps. loss_means: of the steps' losses, each a mean over all that the loss counts."""

    nats: float = 0.0
    chars: int = 0
    loss_means: float = 0.0
    loss_weight: int = 0
    grad_norm: float = 0.0
    steps: int = 0

    @classmethod
    def from_dict(cls, saved: dict) -> "Sums":
        saved = dict(saved)
        if "loss_nats" in saved:  # of an older version, which had their sum; the same where no padding is counted
            saved["loss_means"] = saved.pop("loss_nats") * saved["steps"] / max(1, saved["loss_weight"])
        return cls(**saved)

    def add(self, nats: float, chars: float, loss_nats: float, loss_weight: float, grad_norm: float) -> None:
        self.nats, self.chars = self.nats + nats, self.chars + int(chars)
        self.loss_means, self.loss_weight = self.loss_means + loss_nats / loss_weight, self.loss_weight + int(loss_weight)
        self.grad_norm, self.steps = self.grad_norm + grad_norm, self.steps + 1

    def measures(self) -> dict:
        """For a row of metrics: per character, and beside it, where padding was counted, the mean of the steps' losses."""
        padded = {"padded_nats": self.loss_means / self.steps} if self.loss_weight != self.chars else {}
        return {**measures.of_nats(self.nats / self.chars), **padded, "chars": self.chars}


@dataclasses.dataclass
class Progress:
    """What the loop itself remembers, saved with each checkpoint so that a resumed run logs the same rows.

    Attributes:
      interval, epoch: sums since the last row of training metrics, and since the last evaluation.
      best: {"step", "nats", "split"} of the best evaluation so far.
      evaluated: the nats by which this very step was judged, if it was evaluated.
      rows: of metrics, written so far.
      halvings: of the learning rate, after a divergence each.
    """

    step: int = 0
    interval: Sums = dataclasses.field(default_factory=Sums)
    epoch: Sums = dataclasses.field(default_factory=Sums)
    interval_seconds: float = 0.0
    seconds: float = 0.0
    best: dict | None = None
    since_best: int = 0
    evaluated: float | None = None
    rows: int = 0
    halvings: int = 0

    @classmethod
    def from_dict(cls, saved: dict) -> "Progress":
        return cls(**saved | {name: Sums.from_dict(saved[name]) for name in ("interval", "epoch")})


def initial_state(functions: stack.Functions, optimizer: optax.GradientTransformation, rows: int, seed) -> TrainState:
    """The state before the first step; rows are those of the carry, the seed an integer, traced or not."""
    params = functions.init(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), functions.zero_carry(rows))


def placed(state: TrainState, mesh: Mesh) -> TrainState:
    """The state where the step wants it: rows of the carry shared by the devices of the mesh, all else on each of them."""
    of_rows, shared = NamedSharding(mesh, PartitionSpec(*mesh.axis_names)), NamedSharding(mesh, PartitionSpec())
    return TrainState(*devices.put(tuple(state[:3]), shared), devices.put(state.carry, of_rows))


def resumed(setup: Setup, run: Run, checkpoints: Checkpoints | None) -> tuple[TrainState, Progress]:
    """The state to go on from: of the latest checkpoint that can be read, else the initial one.

    Order of resume: 1. state and progress; 2. metrics cut back to that step; 3. data and randomness follow from the step.
    """
    initial = jax.jit(functools.partial(initial_state, setup.functions, setup.optimizer, setup.batches.rows))
    seed = np.uint32(setup.seed)  # an argument, so that all seeds share what was compiled
    abstract = jax.eval_shape(initial, seed)
    arrays = [None]

    def latest() -> dict | None:
        arrays[0], saved = _latest(setup, run, checkpoints, abstract)
        return saved

    saved = processes.run_on_first_process(latest)
    if saved is None:
        return placed(initial(seed), setup.mesh), Progress()
    if arrays[0] is None:  # in the other processes
        arrays[0] = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    return placed(TrainState(*processes.broadcast_from_first(arrays[0])), setup.mesh), Progress.from_dict(saved)


def _latest(setup: Setup, run: Run, checkpoints: Checkpoints, abstract: TrainState) -> tuple[TrainState | None, dict | None]:
    """The latest checkpoint that can be read, and the progress saved with it; what was logged after it is dropped."""
    steps, unreadable = checkpoints.steps(), []
    for step in reversed(steps):
        try:
            params, (opt_state, carry), saved = checkpoints.restore(step, abstract.params, (abstract.opt_state, abstract.carry))
        except Failure as error:
            progress.warn(f"{error}: going back to the checkpoint before it.")
            unreadable.append(step)
            continue
        for later in unreadable:
            checkpoints.set_aside(later)
        run.write_status("incomplete", step, saved["best"], rows=saved.get("rows", 0))
        kept, dropped = run.rewind(step, evaluated=saved["evaluated"] is not None)
        if kept < saved.get("rows", 0):
            progress.warn(
                f"{run.workdir / 'metrics.jsonl'} has {kept} of the {saved['rows']} rows there were: the others are lost."
            )
        progress.tell(
            f"resuming at step {step} of {setup.total_steps}"
            + (f" ({dropped} later rows of metrics dropped)." if dropped else ".")
        )
        return TrainState(jnp.asarray(step, jnp.int32), params, opt_state, carry), saved
    if steps:
        raise Failure(f"no checkpoint of {run.workdir} can be read: restore one from a copy, or train into another directory.")
    if (reached := run.status()["step"]) > 0:
        progress.warn(f"{run.workdir} has no checkpoint, though it had reached step {reached}: it begins again.")
        run.write_status("incomplete", 0, None)
    run.rewind(0, evaluated=False)
    return None, None
