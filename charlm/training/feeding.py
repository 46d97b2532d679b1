"""The arguments of each call of the step: batches, learning rates, seed, and how many steps the call makes."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from charlm.data.batches import Batch
from charlm.hardware import devices, processes
from charlm.training.setup import Setup
from charlm.training.state import Progress


def steps_at_once(setup: Setup, step: int) -> int:
    """How many steps the call at this step makes: `setup.steps_per_call`, or one.

    A call of several steps begins at a multiple of their number, and nothing may be logged, evaluated or saved within it. The
    answer depends on the step alone, so a resumed run makes the same calls as the run before it.
    """
    together = setup.steps_per_call
    events = [(step // every + 1) * every for every in (setup.log_every, setup.eval_every, setup.checkpoint_every) if every]
    return together if step % together == 0 and step + together <= min(*events, setup.total_steps) else 1


def arguments_maker(setup: Setup) -> Callable[[Progress, int, list[int]], tuple]:
    """A function (progress, count, signals) → the arguments of a call of `count` steps, after the state.

    They are the batches, the learning rates and the seed. With several processes, whether this one was asked to stop is the
    last argument; a call then makes one step.
    """
    seed = np.uint32(setup.seed)

    def arguments(progress: Progress, count: int, signals: list[int]) -> tuple:
        return _batches(setup, progress.step, count), learning_rates(setup, progress, progress.step, count), seed

    if processes.count() == 1:
        return arguments
    sharding = NamedSharding(setup.mesh, PartitionSpec(*setup.mesh.axis_names))
    local_devices = devices.local(setup.mesh).size
    rows = setup.batches.rows // processes.count()
    part = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)

    def local_arguments(progress: Progress, count: int, signals: list[int]) -> tuple:
        local = (setup.batches.batch_at(progress.step, part), np.full(local_devices, bool(signals), np.float32))
        batch, asked_D = jax.tree.map(functools.partial(jax.make_array_from_process_local_data, sharding), local)
        return batch, learning_rates(setup, progress, progress.step, count), seed, asked_D

    return local_arguments


def learning_rates(setup: Setup, progress: Progress, step: int, count: int) -> np.ndarray:
    """The learning rates of `count` steps from `step` on: float32 (count,), or a scalar for one step.

    The rate is halved as often as the run has gone back after a divergence.
    """
    rates = setup.rates(step, count) * np.float32(0.5**progress.halvings)
    return rates[0] if count == 1 else rates


def _batches(setup: Setup, step: int, count: int) -> Batch:
    if count == 1:
        return setup.batches.batch_at(step)
    return jax.tree.map(lambda *steps: np.stack(steps), *(setup.batches.batch_at(step + number) for number in range(count)))
