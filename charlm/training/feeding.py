"""Makes the arguments of each call of the training step: batches, learning rates and seed.

Also decides how many steps a call makes.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from charlm.data.batches import ALL, Batch
from charlm.hardware import devices, processes
from charlm.training.setup import Setup
from charlm.training.state import Progress


def steps_at_once(setup: Setup, step: int) -> int:
    """The number of steps that the next call makes: `setup.steps_per_call`, or 1.

    A call makes several steps only if `step` is a multiple of `setup.steps_per_call`. In addition, the training must not end
    between these steps, and no log row, evaluation or checkpoint may be due between them. The result depends only on the config
    and on `step`. A resumed run therefore makes the same calls as an uninterrupted run.
    """
    together = setup.steps_per_call
    events = [(step // every + 1) * every for every in (setup.log_every, setup.eval_every, setup.checkpoint_every) if every]
    return together if step % together == 0 and step + together <= min(*events, setup.total_steps) else 1


def arguments_maker(setup: Setup) -> Callable[[Progress, int, list[int]], tuple]:
    """Returns a function that makes the arguments of one call of the training step, except the training state.

    The function takes `progress`, the number of steps `count`, and the list of received signals. It returns the batches, the
    learning rates and the seed. With several processes, the function also returns whether this process has received a signal
    to stop.
    """
    seed = np.uint32(setup.seed)

    def arguments(progress: Progress, count: int, signals: list[int]) -> tuple:
        return _batches(setup, progress.step, count), learning_rates(setup, progress, progress.step, count), seed

    if processes.count() == 1:
        return arguments
    local_devices = devices.local(setup.mesh).size
    rows = setup.batches.rows // processes.count()
    part = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)

    def local_arguments(progress: Progress, count: int, signals: list[int]) -> tuple:
        before = () if count == 1 else (count,)  # the axis of the steps
        asked = np.full((*before, local_devices), bool(signals), np.float32)
        sharding = NamedSharding(setup.mesh, PartitionSpec(*(None for _ in before), *setup.mesh.axis_names))
        local = _batches(setup, progress.step, count, part), asked
        batch, asked = jax.tree.map(functools.partial(jax.make_array_from_process_local_data, sharding), local)
        return batch, learning_rates(setup, progress, progress.step, count), seed, asked

    return local_arguments


def learning_rates(setup: Setup, progress: Progress, step: int, count: int) -> np.ndarray:
    """The learning rates of `count` steps, starting at `step`. Returns float32 (count,), or a scalar if `count` is 1.

    Each time the run has gone back to a checkpoint after a divergence, the rates are halved. `progress.halvings` counts these
    times.
    """
    rates = setup.rates(step, count) * np.float32(0.5**progress.halvings)
    return rates[0] if count == 1 else rates


def _batches(setup: Setup, step: int, count: int, rows: slice = ALL) -> Batch:
    if count == 1:
        return setup.batches.batch_at(step, rows)
    batches = (setup.batches.batch_at(step + number, rows) for number in range(count))
    return jax.tree.map(lambda *steps: np.stack(steps), *batches)
