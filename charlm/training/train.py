"""Training: the jitted step, and the loop around it that logs, evaluates, checkpoints, and goes on where it was stopped.

Letters: B batch (rows), S scored positions, V vocabulary, K steps of one call, D devices, N numbers of all sums.
"""

import contextlib
import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm import measures, progress
from charlm.config import keys, load
from charlm.data import batches
from charlm.errors import Failure
from charlm.hardware import devices, processes
from charlm.inference import evaluate
from charlm.models import objective, stack
from charlm.rundir import run as run_module
from charlm.rundir.checkpoint import Checkpoints
from charlm.training.record import Record, Silence
from charlm.training.setup import Setup, describe, set_up
from charlm.training.state import Progress, Sums, TrainState, resumed

_norm = jax.jit(optax.tree.norm)  # op by op it would compile dozens of programs at the first checkpoint


class Diverged(Exception):
    """A number of the training is no longer finite, or out of all reason; says which."""


class StepMetrics(NamedTuple):
    """Scalars of one step, summed over all devices.

    Attributes:
      nats, chars: over the characters of text. loss_nats, loss_weight: over all that the loss counts, so with padding where it
        is counted.
      grad_norm: global norm of the gradient before clipping.
      asked: devices whose process has been asked to stop; None where there is one process.
    """

    nats: jax.Array
    chars: jax.Array
    loss_nats: jax.Array
    loss_weight: jax.Array
    grad_norm: jax.Array
    asked: jax.Array | None = None


def make_train_step(
    functions: stack.Functions, optimizer: optax.GradientTransformation, mesh: Mesh, pad: int | None = None
) -> Callable:
    """The pure function (state, batch, rate, seed, asked_D=None) → (state, StepMetrics), to be jitted with the state donated.

    The learning rate (float32, scalar) and the seed (uint32, scalar) are arguments, so that runs that differ in them or in the
    schedule share what was compiled.

    The devices of the mesh share the rows of a batch; their sums of gradients and nats are added once, at the end, as one array
    by one `psum`: two of them can wait for each other for ever where XLA:CPU has two threads (jaxlib 0.10.2), and between
    processes each array costs a round trip of its own.

    Args:
      pad: id of `<pad>`, of which no nats are reported even where the loss counts them.

    Of several processes each says in `asked_D`, a number for each of its devices, whether it was asked to stop; all then know.
    """
    (axis,) = mesh.axis_names
    shared, of_rows = PartitionSpec(), PartitionSpec(axis)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(shared, *4 * (of_rows,)), out_specs=(shared, of_rows), check_vma=False
    )
    def gradients(params, batch, carry, dropout_keys_B, asked_D):
        def loss(params):
            logits_BSV, new_carry = functions.apply(params, batch, carry, dropout_keys_B)
            loss_sums = objective.nats_and_count(logits_BSV, batch.targets_BS, batch.weights_BS)
            text_sums = loss_sums
            if pad is not None:
                of_text_BS = batch.weights_BS * (batch.inputs_BT[:, -batch.targets_BS.shape[1] :] != pad)
                text_sums = objective.nats_and_count(logits_BSV, batch.targets_BS, of_text_BS)
            return loss_sums[0], ((*text_sums, *loss_sums), new_carry)

        grads, (sums, new_carry) = jax.grad(loss, has_aux=True)(params)
        asked = jax.tree.map(jnp.sum, asked_D)
        sums_N, as_tree = jax.flatten_util.ravel_pytree((grads, sums, asked))
        return as_tree(jax.lax.psum(sums_N, axis)), new_carry

    def train_step(state: TrainState, batch: batches.Batch, rate, seed, asked_D=None) -> tuple[TrainState, StepMetrics]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        dropout_keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, jnp.arange(len(batch.reset_B)))
        (grads, sums, asked), carry = gradients(state.params, batch, state.carry, dropout_keys_B, asked_D)
        *_, loss_weight = sums
        grads = jax.tree.map(lambda leaf: leaf / loss_weight, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, jax.tree.map(lambda update: rate * update, updates))
        return TrainState(state.step + 1, params, opt_state, carry), StepMetrics(*sums, optax.tree.norm(grads), asked)

    return train_step


def several(train_step: Callable) -> Callable:
    """The pure function (state, batches_K, rates_K, seed) → (state, StepMetrics), of as many steps in a row as the first
    axis of the arrays is long; for small models a tenth faster than as many calls."""

    def steps(state: TrainState, batches_K: batches.Batch, rates_K, seed) -> tuple[TrainState, StepMetrics]:
        return jax.lax.scan(lambda state, given: train_step(state, *given, seed), state, (batches_K, rates_K))

    return steps


def train(config, workdir: str) -> int:
    """Trains what the config describes into a run directory, or goes on with what is there; returns the exit status.

    Of several processes all call this; the first one alone reads and writes the directory.

    Raises:
      UserError: the directory is not fit for it, or the corpus is not.
      Failure: the run diverged; as a Broken, the directory can't be written, or another process of the training has gone.
    """
    run = run_module.Run(workdir)
    with processes.detect_process_loss(), contextlib.ExitStack() as held:
        if processes.run_on_first_process(lambda: run_module.exists(workdir, config) and _has_ended(run)):
            return 0
        setup = processes.make_identical(lambda: set_up(config), functools.partial(_identity, config))
        held.enter_context(run.writing())
        if processes.run_on_first_process(_open, run, config, setup, held):
            return 0
        first = processes.is_first()
        checkpoints = held.enter_context(contextlib.closing(Checkpoints(run.checkpoints))) if first else None
        state, done = resumed(setup, run, checkpoints)
        if first:
            describe(setup, evaluate.on_one_device(state.params))
        signals, stopped_by = held.enter_context(_signals()), None
        while stopped_by is None:
            try:
                with Record(setup, run, checkpoints, done) if first else Silence() as record:
                    stopped_by = _loop(setup, record, state, done, signals)
            except Diverged as error:
                state, done = _gone_back(error, setup, run, checkpoints, done)
            except Exception as error:
                if first and not isinstance(error, Failure) and not processes.is_process_loss(error):
                    with contextlib.suppress(OSError):
                        run.write_status("failed", done.step, done.best, f"{type(error).__name__}: {error}", done.rows)
                raise
    if first and stopped_by:
        progress.tell(f"stopped at step {done.step} of {setup.total_steps}: the same command goes on from there.")
    elif first:
        progress.tell(f"done at step {done.step} in {progress.duration(done.seconds)}: {_best(done.best)}.")
    return 128 + stopped_by if stopped_by else 0


def _identity(config, setup: Setup) -> str:
    """What has to be the same in all processes."""
    fields = load.flatten(load.to_dict(config))
    same = {key: value for key, value in fields.items() if key not in keys.CHANGE_NO_RESULT}
    return json.dumps([same, setup.vocab.to_dict(), setup.provenance["sha256"], setup.provenance["splits"]], sort_keys=True)


def _open(run: run_module.Run, config, setup: Setup, held: contextlib.ExitStack) -> bool:
    """Takes the directory, and begins a run in it if there is none; whether the run that is there has ended."""
    run_module.make(run.workdir)
    held.enter_context(run.locked())
    if not run_module.exists(run.workdir, config):  # asked again, now that nobody else can begin or end it
        run.begin(config, setup.vocab, setup.provenance)
    elif _has_ended(run):
        return True
    run.check_data(setup.vocab, setup.provenance)
    run.note_start(
        device=f"{jax.default_backend()}: {', '.join(device.device_kind for device in jax.devices())}",
        parameters=stack.parameter_count(jax.eval_shape(setup.functions.init, jax.random.key(0))),
        total_steps=setup.total_steps,
    )
    return False


def _loop(setup: Setup, record: Record | Silence, state: TrainState, done: Progress, signals: list[int]) -> int:
    """Trains to the end; returns the number of the signal that stopped it before, else 0."""
    train_step = make_train_step(setup.functions, setup.optimizer, setup.mesh, setup.pad)
    one, many = jax.jit(train_step, donate_argnums=0), jax.jit(several(train_step), donate_argnums=0)
    evaluate_split = evaluate.evaluator(setup.functions, devices.own(setup.mesh))
    given = _feed(setup)
    finished = _is_finished(setup, done)
    stopping = bool(signals) and processes.count() == 1  # in the loop before this one, which has diverged
    clock = _Clock(done)
    before = None  # metrics of the call before: fetched once the next one is under way, so that the device never waits
    while not (finished or stopping):
        stopping = bool(signals) and processes.count() == 1  # read once, since a signal may come at any moment
        if not (stopping or _is_due(setup, done)):  # if due, it was stopped amid this evaluation, which comes first then
            count = steps_at_once(setup, done.step)
            state, metrics = (one if count == 1 else many)(state, *given(done, count, signals))
            if before is not None:
                stopping = _add(done, before) or stopping
                record.step(done, clock)
            before, done.step, done.evaluated = metrics, done.step + count, None
        evaluate_now = _is_due(setup, done)
        log_now = before is not None and (done.step >= setup.total_steps or done.step % setup.log_every == 0)
        save_now = evaluate_now or stopping or _is_multiple(done.step, setup.checkpoint_every)
        if before is not None and (log_now or save_now):
            stopping = _add(done, before) or stopping
            save_now = save_now or stopping
            before = None
            record.step(done, clock)
            clock.lap(training=True)
        if log_now:
            row = _train_row(setup, done)
            record.row(row, clock)
            _check_loss(row["nats"], f"the mean loss up to step {done.step}")
            done.interval, done.interval_seconds = Sums(), 0.0
        if evaluate_now:
            rows = processes.run_on_first_process(_evaluation_rows, setup, done, evaluate_split, state.params, signals)
            if rows is None:
                stopping = True
            else:
                _judge(setup, done, rows[-1])
                record.evaluation(done, rows, state.params)
                done.epoch = Sums()
                finished = _is_finished(setup, done)
        clock.lap(training=not (log_now or save_now))
        if save_now:
            if not math.isfinite(float(_norm(evaluate.on_one_device(state.params)))):
                raise Diverged(f"a parameter after step {done.step} is not finite")
            record.save(done, processes.gather_rows(state))
            clock.lap(training=False)
    record.end(done, finished)
    return 0 if finished else (signals or [signal.SIGTERM])[0]


def steps_at_once(setup: Setup, step: int) -> int:
    """How many steps the call at this step makes: `steps_per_call` from a multiple of it where nothing is logged, evaluated or
    saved between, else one. It depends on the step alone, so a resumed run calls as the one before it did."""
    together = setup.steps_per_call
    events = [(step // every + 1) * every for every in (setup.log_every, setup.eval_every, setup.checkpoint_every) if every]
    return together if step % together == 0 and step + together <= min(*events, setup.total_steps) else 1


def _feed(setup: Setup) -> Callable:
    """A function (done, count, signals) → what a call needs beside the state: the batches and learning rates of so many steps,
    the seed, and of several processes whether to stop."""
    seed = np.uint32(setup.seed)
    if processes.count() == 1:
        return lambda done, count, signals: (_stacked(setup, done.step, count), _rates(setup, done, done.step, count), seed)
    sharding = NamedSharding(setup.mesh, PartitionSpec(*setup.mesh.axis_names))
    own = devices.own(setup.mesh).size
    each = setup.batches.rows // processes.count()
    part = slice(jax.process_index() * each, (jax.process_index() + 1) * each)

    def feed(done: Progress, count: int, signals: list[int]) -> tuple:
        local = (setup.batches.batch_at(done.step, part), np.full(own, bool(signals), np.float32))
        batch, asked_D = jax.tree.map(functools.partial(jax.make_array_from_process_local_data, sharding), local)
        return batch, _rates(setup, done, done.step, count), seed, asked_D  # the count is always one, see setup.py

    return feed


def _stacked(setup: Setup, step: int, count: int) -> batches.Batch:
    if count == 1:
        return setup.batches.batch_at(step)
    return jax.tree.map(lambda *steps: np.stack(steps), *(setup.batches.batch_at(step + number) for number in range(count)))


def _rates(setup: Setup, done: Progress, step: int, count: int) -> np.ndarray:
    """The learning rates of so many steps, float32 (count,), of one step (); halved as often as the run has diverged."""
    rates = setup.rates(step, count) * np.float32(0.5**done.halvings)
    return rates[0] if count == 1 else rates


def _add(done: Progress, metrics: StepMetrics) -> bool:
    """Adds the steps of a call to the sums of the log interval; returns whether a process had been asked to stop when it began.

    Raises:
      Diverged: their numbers are not finite.
    """
    *values, asked = jax.device_get(metrics)
    steps = np.stack(values, axis=-1, dtype=float).reshape(-1, len(values))
    for number, (nats, chars, loss_nats, loss_weight, grad_norm) in enumerate(steps.tolist()):
        for name, value in (("loss", loss_nats), ("gradient", grad_norm)):
            if not math.isfinite(value):
                raise Diverged(f"the {name} of step {done.step - len(steps) + number + 1} is not finite")
        for sums in (done.interval, done.epoch):
            sums.add(nats, chars, loss_nats, loss_weight, grad_norm)
    return bool(asked)


def _gone_back(
    error: Diverged, setup: Setup, run: run_module.Run, checkpoints: Checkpoints | None, done: Progress
) -> tuple[TrainState, Progress]:
    """State and progress of the last checkpoint, its learning rate halved once more than that of the start that diverged.

    A start that is killed before the next checkpoint comes here again, and to the same numbers.

    Raises:
      Failure: the rate has been halved as often as `train.halvings` allows; the run is then marked diverged.
    """
    if checkpoints:
        checkpoints.wait()
    if done.halvings >= setup.halvings:
        if checkpoints:
            run.write_status("diverged", done.step, done.best, str(error), done.rows)
        raise Failure(
            f"{error}: the run is marked diverged and its last good checkpoint kept; try a lower optim.learning_rate."
        )
    if checkpoints:
        progress.warn(f"{error}: going back to the last checkpoint and halving the learning rate.")
    state, before = resumed(setup, run, checkpoints)
    before.halvings = done.halvings + 1
    return state, before


def _train_row(setup: Setup, done: Progress) -> dict:
    return {
        **_where(setup, done, "train"),
        **done.interval.measures(),
        "learning_rate": float(_rates(setup, done, done.step - 1, 1)),
        "grad_norm": done.interval.grad_norm / done.interval.steps,
        "chars_per_second": done.interval.chars / max(done.interval_seconds, 1e-9),
        "seconds": done.seconds,
    }


def _evaluation_rows(setup: Setup, done: Progress, evaluate_split: Callable, params, signals: list[int]) -> list[dict] | None:
    """The mean training loss since the evaluation before, and the validation loss if there is one; last the one that judges.

    None where a signal came in the meantime.
    """
    rows = [{**_where(setup, done, "train_mean"), **done.epoch.measures(), "seconds": done.seconds}]
    if "validation" in setup.encoded:
        if processes.count() > 1:
            params = evaluate.on_one_device(params)
        sums = evaluate_split(params, setup.encoded["validation"], setup.protocol, lambda: bool(signals))
        if sums is None:
            return None
        nats, chars = sums
        protocol = setup.protocol.named(setup.provenance["sha256"], "validation", chars)
        figures = {**measures.of_nats(nats / chars), "chars": chars, "protocol": protocol}
        rows.append({**_where(setup, done, "validation"), **figures})
    return rows if setup.best_by == "validation" else rows[::-1]


def _where(setup: Setup, done: Progress, split: str) -> dict:
    return {"step": done.step, "epoch": done.step / setup.batches.steps_per_epoch, "split": split}


def _judge(setup: Setup, done: Progress, row: dict) -> None:
    """Notes whether this evaluation is the best so far."""
    done.evaluated = row["nats"]
    _check_loss(row["nats"], f"the {setup.best_by} loss at step {done.step}")
    if done.best is None or row["nats"] < done.best["nats"]:
        done.best, done.since_best = {"step": done.step, "nats": row["nats"], "split": setup.best_by}, 0
    else:
        done.since_best += 1


def _check_loss(nats: float, what: str) -> None:
    """Raises Diverged where no character model that learns has such a loss."""
    if not math.isfinite(nats):
        raise Diverged(f"{what} is not finite")
    if nats > measures.MOST_NATS:
        raise Diverged(f"{what} is {nats:,.0f} nats a char, beyond the {measures.MOST_NATS:.0f} of anything that learns")


class _Clock:
    """Adds wall-clock seconds to the progress: all of them, and those of the log interval that were training."""

    def __init__(self, done: Progress):
        self._done, self._since = done, time.perf_counter()
        self._first = (done.step, self._since)

    def lap(self, training: bool) -> None:
        now = time.perf_counter()
        self._done.seconds += now - self._since
        if training:
            self._done.interval_seconds += now - self._since
        self._since = now

    def pace(self, total_steps: int) -> tuple[float, float]:
        """Characters a second in this log interval, and seconds left at the pace of this start, evaluations included."""
        done, now = self._done, time.perf_counter()
        first_step, begin = self._first
        left = (total_steps - done.step) * (now - begin) / max(done.step - first_step, 1)
        return done.interval.chars / (done.interval_seconds + now - self._since), left


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM add their number; the second signal ends the process at once."""
    received = []

    def note(number, frame):
        del frame
        received.append(number)
        progress.stopping()
        for signal_number in before:
            signal.signal(signal_number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_ended(run: run_module.Run) -> bool:
    """Whether the run is done, which is said; a diverged one is a failure."""
    status = run.status()
    if status["state"] == "diverged":
        raise Failure(f"{run.workdir} has diverged ({status['message']}): change the config and train into another directory.")
    if status["state"] == "done":
        progress.tell(f"{run.workdir} is done at step {status['step']}: {_best(status['best'])}.")
    return status["state"] == "done"


def _is_due(setup: Setup, done: Progress) -> bool:
    """Whether the evaluation of this step is still to be made."""
    return done.step > 0 and done.evaluated is None and (done.step >= setup.total_steps or done.step % setup.eval_every == 0)


def _is_finished(setup: Setup, done: Progress) -> bool:
    if _is_due(setup, done):
        return False
    return done.step >= setup.total_steps or 0 < setup.patience <= done.since_best


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _best(best: dict | None) -> str:
    if best is None:
        return "not evaluated"
    return f"{measures.best_in_words(best)}, at step {best['step']}"
