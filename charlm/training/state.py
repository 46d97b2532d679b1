"""The state and the progress of a training, and how a resumed run restores them from a checkpoint."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm import measures
from charlm import progress as messages
from charlm.errors import Failure
from charlm.hardware import devices, processes
from charlm.models import stack
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training import averaging as averages
from charlm.training.setup import Setup
from charlm.training.step import TrainState


def params_to_evaluate(state: TrainState) -> Any:
    """The parameters that evaluations, samples and other programs use: the average, or without averaging the raw parameters."""
    return state.params if state.average is None else state.average.params


def with_begun_average(state: TrainState) -> TrainState:
    """The state when the average of `nt_asgd` begins."""
    assert state.average is not None
    return state._replace(average=averages.begun(state.average))


def to_checkpoint(state: TrainState) -> tuple[Any, tuple]:
    """The two parts that a checkpoint saves: (params, rest). Programs that evaluate or sample restore only `params`."""
    rest: tuple = (state.opt_state, state.carry)
    if state.average is not None:
        rest += (state.params, (state.average.number, state.average.rates))
    return params_to_evaluate(state), rest


def from_checkpoint(step: int, params: Any, rest: tuple) -> TrainState:
    """The inverse of `to_checkpoint`: the state after `step` steps."""
    opt_state, carry, *of_average = rest
    made = TrainState(jnp.asarray(step, jnp.int32), params, opt_state, carry)
    if not of_average:
        return made
    raw, (number, rates) = of_average
    return made._replace(params=raw, average=averages.Average(params, number, rates))


@dataclasses.dataclass
class Sums:
    """Sums of `StepMetrics` over steps.

    Attributes:
      loss_means: the sum of one number for each step, the mean loss of the step. If `batch.padding` is `counted`, the mean
        includes padding.
      steps: the number of steps added.
    """

    nats: float = 0.0
    chars: int = 0
    loss_means: float = 0.0
    loss_weight: int = 0
    grad_norm: float = 0.0
    steps: int = 0

    @classmethod
    def from_dict(cls, saved: dict) -> "Sums":
        """The sums that a checkpoint has saved."""
        saved = dict(saved)
        # An older version of charlm saved `loss_nats`, the sum of the loss in nats, instead of `loss_means`. This conversion is
        # exact unless `batch.padding` is `counted`.
        if "loss_nats" in saved:
            saved["loss_means"] = saved.pop("loss_nats") * saved["steps"] / max(1, saved["loss_weight"])
        return cls(**saved)

    def add(self, nats: float, chars: float, loss_nats: float, loss_weight: float, grad_norm: float) -> None:
        """Adds the metrics of one step."""
        self.nats, self.chars = self.nats + nats, self.chars + int(chars)
        self.loss_means, self.loss_weight = self.loss_means + loss_nats / loss_weight, self.loss_weight + int(loss_weight)
        self.grad_norm, self.steps = self.grad_norm + grad_norm, self.steps + 1

    def measures(self) -> dict[str, Any]:
        """The values of a metrics row.

        `nats`, `bits` and `perplexity` are per character. If the loss counted padding, `padded_nats` is the average loss of a
        step, padding included.
        """
        padded = {"padded_nats": self.loss_means / self.steps} if self.loss_weight != self.chars else {}
        return {**measures.of_nats(self.nats / self.chars), **padded, "chars": self.chars}


@dataclasses.dataclass
class Progress:
    """The variables of the training loop.

    Each checkpoint saves these variables. A resumed run therefore logs the same rows as a run that was never stopped.

    Attributes:
      interval: sums since the last row of training metrics.
      epoch: sums since the last evaluation.
      interval_seconds: seconds of training since the last row of training metrics.
      seconds: seconds of the whole run, including evaluations.
      best: {"step", "nats", "split"} of the best evaluation so far.
      since_best: number of evaluations since the best evaluation, without the best evaluation itself.
      evaluated: loss of the evaluation at this step in nats per character; None if no evaluation was made at this step.
      rows: number of metrics rows written.
      halvings: number of times that the learning rate was halved after a divergence.
      losses: with `optim.average=nt_asgd`, the validation losses up to the evaluation at which the average began.
      began_at: with `optim.average=nt_asgd`, the step at which the average began; None if it has not begun.
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
    losses: list[float] = dataclasses.field(default_factory=list)
    began_at: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The progress as a checkpoint saves it. The variables of `nt_asgd` are left out if they have their initial values."""
        saved = dataclasses.asdict(self)
        if not self.losses:
            del saved["losses"]
        if self.began_at is None:
            del saved["began_at"]
        return saved

    @classmethod
    def from_dict(cls, saved: dict) -> "Progress":
        """The progress that a checkpoint has saved."""
        return cls(**saved | {name: Sums.from_dict(saved[name]) for name in ("interval", "epoch")})


def initial_state(
    functions: stack.Functions,
    optimizer: optax.GradientTransformation,
    rows: int,
    seed: Any,
    averaging: averages.Averaging | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      rows: number of rows in a batch.
      seed: an integer, or an integer that JAX traces.
      averaging: how the parameters are averaged; None: the state has no average.
    """
    return state_with(functions.init(jax.random.key(seed)), optimizer, functions.zero_carry(rows), averaging)


def state_with(
    params: Any, optimizer: optax.GradientTransformation, carry: tuple, averaging: averages.Averaging | None
) -> TrainState:
    """The state before the first step, with these parameters."""
    average = None if averaging is None else averages.initial(averaging, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), carry, average)


def initial_state_maker(setup: Setup) -> Callable[[np.uint32], TrainState]:
    """Returns a compiled function, seed → the state before the first step.

    The seed is an argument, so that one compiled program serves all seeds.
    """
    make = functools.partial(initial_state, setup.functions, setup.optimizer, setup.batches.rows, averaging=setup.averaging)
    return jax.jit(make)


def placed(state: TrainState, mesh: Mesh) -> TrainState:
    """Puts the state on the devices of the mesh.

    The rows of the carry are divided among the devices. Each device has a full copy of every other array.
    """
    divided, copied = NamedSharding(mesh, PartitionSpec(*mesh.axis_names)), NamedSharding(mesh, PartitionSpec())
    step, params, opt_state, average = devices.put((state.step, state.params, state.opt_state, state.average), copied)
    return TrainState(step, params, opt_state, devices.put(state.carry, divided), average)


def resumed(setup: Setup, run: Run, checkpoints: Checkpoints | None) -> tuple[TrainState, Progress]:
    """The state and progress of the latest readable checkpoint, or the initial state and progress if no checkpoint exists.

    First reads the state and the progress. Then deletes the metrics rows of steps after the checkpoint. A checkpoint holds
    no batches and no random keys, because the step and the seed determine the next batches and random numbers.

    Args:
      checkpoints: None in every process except the first process. The first process sends the state and the progress to the
        other processes.
    """
    initial, seed = initial_state_maker(setup), np.uint32(setup.seed)
    restored: list[TrainState] = []

    def latest() -> dict | None:
        assert checkpoints is not None
        found = _latest(setup, run, checkpoints)
        if found is None:
            return None
        restored.append(found[0])
        return found[1]

    saved = processes.run_on_first_process(latest)
    if saved is None:
        return placed(initial(seed), setup.mesh), Progress()
    arrays = (
        restored[0] if restored else jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(initial, seed))
    )
    return placed(TrainState(*processes.broadcast_from_first(arrays)), setup.mesh), Progress.from_dict(saved)


class Latest(NamedTuple):
    """The latest readable checkpoint.

    Attributes:
      params, rest, progress: what `Checkpoints.restore` returns.
      unreadable: the steps of all checkpoints after this checkpoint. None of these checkpoints can be read.
    """

    step: int
    params: Any
    rest: tuple
    progress: dict
    unreadable: list[int]


def latest_checkpoint(setup: Setup, checkpoints: Checkpoints) -> Latest | None:
    """Reads the latest readable checkpoint. Warns of each checkpoint that can't be read. Returns None if none can be read."""
    if not (steps := checkpoints.steps()):
        return None
    abstract = jax.eval_shape(initial_state_maker(setup), np.uint32(0))
    unreadable: list[int] = []
    for step in reversed(steps):
        try:
            return Latest(step, *checkpoints.restore(step, *to_checkpoint(abstract)), unreadable)
        except Failure as error:
            messages.warn(f"{error}: going back to the checkpoint before it.")
            unreadable.append(step)
    return None


def forget_best(progress: Progress) -> None:
    """Forgets the best evaluation and the earlier losses, because later evaluations can't be compared with them."""
    progress.best, progress.since_best, progress.losses = None, 0, []


def _latest(setup: Setup, run: Run, checkpoints: Checkpoints) -> tuple[TrainState, dict] | None:
    """The state and progress in the latest readable checkpoint, or None. Deletes the metrics rows of steps after it."""
    if found := latest_checkpoint(setup, checkpoints):
        step, params, rest, saved, unreadable = found
        for later in unreadable:
            checkpoints.set_aside(later)
        _note_extensions(run, step, saved)
        run.write_status("incomplete", step, saved["best"], rows=saved.get("rows", 0))
        kept, dropped = run.rewind(step, evaluated=saved["evaluated"] is not None)
        if kept < saved.get("rows", 0):
            messages.warn(f"{run.workdir / 'metrics.jsonl'} has {kept} of its {saved['rows']} rows: the others are lost.")
        later_rows = f" ({messages.counted(dropped, 'later row')} of metrics dropped)" if dropped else ""
        if step > 0:  # a run that begins with the parameters of another run has a checkpoint of step 0
            messages.tell(f"resuming at step {step} of {setup.total_steps}{later_rows}.")
        return from_checkpoint(step, params, rest), saved
    if checkpoints.steps():
        raise Failure(f"no checkpoint of {run.workdir} can be read: restore one from a copy, or train into another directory.")
    if (reached := run.status()["step"]) > 0:
        messages.warn(f"{run.workdir} has no checkpoint, although it had reached step {reached}: it starts again.")
        run.write_status("incomplete", 0, None)
    run.rewind(0, evaluated=False)
    return None


def _note_extensions(run: Run, step: int, saved: dict) -> None:
    """Applies the extensions of a run, which are the recorded changes of its config, to a saved progress.

    Removes the best evaluation from the progress if an extension has changed the evaluation protocol since the progress was
    saved. Warns if the run was extended at a step after `step`. The steps from `step` to the extension are then trained with
    the changed config, although they come before the extension.

    Args:
      step: the step of the checkpoint from which the run resumes.
      saved: the progress in this checkpoint. It is changed in place.
    """
    for extension in run.extensions():
        if extension["resets_best"] and saved.get("rows", 0) <= extension["rows"]:
            saved |= {"best": None, "since_best": 0, "losses": []}
        if step < extension["step"]:
            messages.warn(
                f"{run.workdir} was extended at step {extension['step']}, but resumes at step {step}: the steps in between are "
                "trained with the changed config."
            )
