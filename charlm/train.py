"""Training: the jitted step, and the loop around it that logs, evaluates, checkpoints, and goes on where it was stopped.

Letters: B batch, S scored positions, V vocabulary, N symbols of a split.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from charlm import batches, corpora, evaluate, model, objective, optim, progress, sample
from charlm import run as run_module
from charlm.checkpoint import Checkpoints
from charlm.errors import Failure
from charlm.vocab import Vocab, symbols_of


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
      step: int32 scalar, steps done. Randomness is folded from the seed and this number; no key is stored.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    carry: model.CarryStack


class StepMetrics(NamedTuple):
    """Scalars of one step: sum of nats, count of characters, global norm of the gradient before clipping."""

    nats: jax.Array
    chars: jax.Array
    grad_norm: jax.Array


@dataclasses.dataclass
class Progress:
    """What the loop itself remembers, saved with each checkpoint so that a resumed run logs the same rows.

    The sums are over the log interval that is under way. `best` is {"step", "nats"} of the best evaluation so far, and
    `evaluated` the validation nats of this very step, if it was evaluated.
    """

    step: int = 0
    nats: float = 0.0
    chars: int = 0
    grad_norm: float = 0.0
    steps: int = 0
    interval_seconds: float = 0.0
    seconds: float = 0.0
    best: dict | None = None
    since_best: int = 0
    evaluated: float | None = None


def make_train_step(functions: model.Functions, optimizer: optax.GradientTransformation, seed: int) -> Callable:
    """The pure function (state, batch) → (state, StepMetrics), to be jitted with the state donated."""

    def train_step(state: TrainState, batch: batches.Batch) -> tuple[TrainState, StepMetrics]:
        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss(params):
            logits_BSV, carry = functions.apply(params, batch, state.carry, dropout_key)
            nats, chars = objective.nats_and_count(logits_BSV, batch.targets_BS, batch.weights_BS)
            return nats / chars, (nats, chars, carry)

        grads, (nats, chars, carry) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, carry), StepMetrics(nats, chars, optax.tree.norm(grads))

    return train_step


def initial_state(functions: model.Functions, optimizer: optax.GradientTransformation, lanes: int, seed: int) -> TrainState:
    params = functions.init(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), functions.zero_carry(lanes))


@dataclasses.dataclass(frozen=True)
class Setup:
    """A config made into things: data, functions and numbers. Nothing in here changes while it trains."""

    vocab: Vocab
    provenance: dict
    ids: dict[str, np.ndarray]
    batches: batches.Stream
    functions: model.Functions
    total_steps: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    log_every: int
    eval_every: int
    checkpoint_every: int
    patience: int
    protocol: evaluate.Protocol
    draw_sample: Callable[[dict, int], str] | None
    seed: int


def set_up(config) -> Setup:
    """Loads the corpus and builds model and optimiser; writes nothing.

    Raises:
      UserError: what the corpora, the vocabulary and the batches object to.
    """
    seed = config.seed
    corpus = corpora.load(config)
    vocab_splits = {"train": ["train"], "corpus": list(corpus.splits)}[config.vocab.source]
    symbols = "".join(symbols_of(corpus.splits[split]) for split in vocab_splits)
    vocab = Vocab.of(symbols, config.vocab.unknown)
    ids = {split: vocab.encode(text, f"the {split} split") for split, text in corpus.splits.items()}
    stream = batches.training_batches(config, ids["train"], seed)
    functions = model.functions(config, len(vocab))
    protocol = evaluate.Protocol.of(config)
    next(batches.evaluation_windows(ids["validation"], *protocol))  # what does not fit is said now, not after an epoch
    total_steps = config.train.steps or max(1, round(config.train.epochs * stream.steps_per_epoch))
    return Setup(
        vocab=vocab,
        provenance=corpus.provenance,
        ids=ids,
        batches=stream,
        functions=functions,
        total_steps=total_steps,
        schedule=optim.schedule(config, total_steps),
        optimizer=optim.optimizer(config, total_steps),
        log_every=config.train.log_every,
        eval_every=config.train.eval_every or stream.steps_per_epoch,
        checkpoint_every=config.train.checkpoint_every,
        patience=config.train.patience,
        protocol=protocol,
        draw_sample=_sample_drawer(config, functions, vocab, seed, corpus.splits["validation"][0]),
        seed=seed,
    )


def train(config, workdir: str) -> int:
    """Trains what the config describes into a run directory, or goes on with what is there; returns the exit status.

    Raises:
      UserError: the directory is not fit for it, or the corpus is not.
      Failure: the run diverged.
    """
    run = run_module.Run(workdir)
    if run_module.exists(workdir, config) and _has_ended(run):
        return 0
    setup = set_up(config)
    run_module.make(workdir)
    with run.locked():
        if not run_module.exists(workdir, config):  # asked again, now that nobody else can begin or end it
            run.begin(config, setup.vocab, setup.provenance)
        elif _has_ended(run):
            return 0
        run.check_data(setup.vocab, setup.provenance)
        run.note_start(device=f"{jax.default_backend()}: {', '.join(device.device_kind for device in jax.devices())}")
        with contextlib.closing(Checkpoints(run.checkpoints)) as checkpoints:
            state, done = _start(setup, run, checkpoints)
            _describe(setup, state.params)
            try:
                stopped_by = _loop(setup, run, checkpoints, state, done)
            except (Failure, KeyboardInterrupt):
                raise
            except BaseException as error:
                run.write_status("failed", done.step, done.best, f"{type(error).__name__}: {error}")
                raise
    if stopped_by:
        print(f"stopped at step {done.step} of {setup.total_steps}: the same command goes on from there.")
        return 128 + stopped_by
    print(f"done at step {done.step} in {progress.duration(done.seconds)}: {_best(done.best)}.")
    return 0


def _loop(setup: Setup, run: run_module.Run, checkpoints: Checkpoints, state: TrainState, done: Progress) -> int:
    """Trains to the end; returns the number of the signal that stopped it before, else 0."""
    train_step = jax.jit(make_train_step(setup.functions, setup.optimizer, setup.seed), donate_argnums=0)
    train_step = train_step.lower(state, setup.batches.batch_at(done.step)).compile()
    evaluate_split = evaluate.evaluator(setup.functions)
    finished, stopping = _is_finished(setup, done), False
    with (
        progress.Reporter(setup.total_steps, done.step) as reporter,
        run.scalars(done.step) as log,
        _signals() as signals,
    ):
        clock = _Clock(done)
        before = None  # metrics of the step before: fetched once the next one is under way, so that the device never waits
        while not (finished or stopping):
            state, metrics = train_step(state, setup.batches.batch_at(done.step))
            if before is not None:
                _add(done, before, run)
                reporter.step(done.step, done.nats / done.chars, *clock.pace(setup.total_steps))
            before, done.step, done.evaluated = metrics, done.step + 1, None
            finished = _is_finished(setup, done)
            stopping = bool(signals)  # asked once, since a signal may come at any moment
            log_now = finished or done.step % setup.log_every == 0
            evaluate_now = finished or done.step % setup.eval_every == 0
            save_now = evaluate_now or stopping or _is_multiple(done.step, setup.checkpoint_every)
            if log_now or save_now:
                _add(done, before, run)
                before = None
                clock.lap(training=True)
            if log_now:
                row = _train_row(setup, done)
                log(row)
                reporter.row(row, clock.pace(setup.total_steps)[1])
                _reset_interval(done)
            if evaluate_now:
                row = _validation_row(setup, done, evaluate_split, state.params)
                _judge(run, done, row)
                finished = _is_finished(setup, done)
                log(row)
                reporter.row(row, note="  best so far" if done.since_best == 0 else "")
                if setup.draw_sample:
                    run.write_sample(done.step, setup.draw_sample(state.params, done.step))
            clock.lap(training=not (log_now or save_now))
            if save_now:
                _save(run, checkpoints, state, done)
                clock.lap(training=False)
        checkpoints.wait()
        checkpoints.keep_only(_best_step(done) | set(checkpoints.steps()[-2:]))
    run.write_status("done" if finished else "incomplete", done.step, done.best)
    return 0 if finished else signals[0]


def _start(setup: Setup, run: run_module.Run, checkpoints: Checkpoints) -> tuple[TrainState, Progress]:
    """The state to go on from: of the latest checkpoint that can be read, else the initial one.

    Order of resume: 1. state and progress; 2. metrics cut back to that step; 3. data and randomness follow from the step.
    """
    initial = functools.partial(initial_state, setup.functions, setup.optimizer, setup.batches.lanes, setup.seed)
    abstract = jax.eval_shape(initial)
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
        dropped = run.rewind(step)
        print(
            f"resuming at step {step} of {setup.total_steps}"
            + (f" ({dropped} later rows of metrics dropped)." if dropped else ".")
        )
        return TrainState(jnp.asarray(step, jnp.int32), params, opt_state, carry), Progress(**saved)
    if steps:
        raise Failure(f"no checkpoint of {run.workdir} can be read: restore one from a copy, or train into another directory.")
    run.rewind(0)
    return jax.jit(initial)(), Progress()


def _save(run: run_module.Run, checkpoints: Checkpoints, state: TrainState, done: Progress) -> None:
    """Starts a checkpoint, and drops those that are neither the best nor the latest on disk."""
    if not math.isfinite(float(optax.tree.norm(state.params))):
        _diverged(run, done, f"a parameter after step {done.step} is not finite")
    run.sync_metrics()
    checkpoints.wait()
    if _best_step(done) != {done.step}:  # else the best before this one stays until this one is on disk
        checkpoints.keep_only(_best_step(done) | set(checkpoints.steps()[-1:]))
    checkpoints.save(done.step, state.params, (state.opt_state, state.carry), dataclasses.asdict(done))
    run.write_status("incomplete", done.step, done.best)


def _add(done: Progress, metrics: StepMetrics, run: run_module.Run) -> None:
    """Adds a step to the sums of the log interval, and stops the run where its numbers are not finite."""
    nats, chars, grad_norm = (float(value) for value in jax.device_get(metrics))
    step = done.step
    if not (math.isfinite(nats) and math.isfinite(grad_norm)):
        what = "loss" if not math.isfinite(nats) else "gradient"
        _diverged(run, done, f"the {what} of step {step} is not finite")
    done.nats, done.chars = done.nats + nats, done.chars + int(chars)
    done.grad_norm, done.steps = done.grad_norm + grad_norm, done.steps + 1


def _diverged(run: run_module.Run, done: Progress, what: str) -> None:
    run.write_status("diverged", done.step, done.best, what)
    raise Failure(
        f"{what}: {run.workdir} is marked diverged and its last good checkpoint kept; try a lower optim.learning_rate."
    )


def _train_row(setup: Setup, done: Progress) -> dict:
    return {
        "step": done.step,
        "epoch": done.step / setup.batches.steps_per_epoch,
        "split": "train",
        **objective.measures(done.nats / done.chars),
        "chars": done.chars,
        "learning_rate": float(setup.schedule(done.step - 1)),
        "grad_norm": done.grad_norm / done.steps,
        "chars_per_second": done.chars / max(done.interval_seconds, 1e-9),
        "seconds": done.seconds,
    }


def _validation_row(setup: Setup, done: Progress, evaluate_split: Callable, params) -> dict:
    nats, chars = evaluate_split(params, setup.ids["validation"], setup.protocol)
    return {
        "step": done.step,
        "epoch": done.step / setup.batches.steps_per_epoch,
        "split": "validation",
        **objective.measures(nats / chars),
        "chars": chars,
        "protocol": setup.protocol.named(setup.provenance["sha256"], "validation", chars),
    }


def _judge(run: run_module.Run, done: Progress, row: dict) -> None:
    """Notes whether this evaluation is the best so far."""
    done.evaluated = row["nats"]
    if not math.isfinite(row["nats"]):
        _diverged(run, done, f"the validation loss at step {done.step} is not finite")
    if done.best is None or row["nats"] < done.best["nats"]:
        done.best, done.since_best = {"step": done.step, "nats": row["nats"]}, 0
    else:
        done.since_best += 1


def _sample_drawer(config, functions: model.Functions, vocab: Vocab, seed: int, first: str):
    """A function (params, step) → text for the samples that are written while training; None where none are asked for."""
    prompt, length, temperature = config.sample.prompt, config.sample.length, config.sample.temperature
    if length == 0:
        return None
    prompt = first if prompt is None else prompt
    prompt_ids = vocab.encode(prompt, "sample.prompt")
    decoding = sample.Decoding(temperature=temperature)
    generate = sample.sampler(functions, len(vocab), decoding, vocab.never_drawn())

    def draw(params, step: int) -> str:
        pieces = generate(params, prompt_ids, rows=1, length=length, key=jax.random.fold_in(jax.random.key(seed), step))
        return prompt + "".join(vocab.decode(ids_BN[0]) for ids_BN in pieces)

    return draw


def _describe(setup: Setup, params) -> None:
    """Prints what is trained on what: splits, parameter table, length."""
    splits = ", ".join(f"{split} {len(ids):,}" for split, ids in setup.ids.items())
    print(f"{setup.provenance['name']}: {splits} chars, vocabulary of {len(setup.vocab)}")
    table = model.parameter_table(params)
    width = max(len(name) for name, _, _ in table)
    for name, shape, count in table:
        print(f"  {name:<{width}}  {' x '.join(map(str, shape)):>12}  {count:>12,}")
    print(f"  {'parameters':<{width}}  {'':>12}  {sum(count for _, _, count in table):>12,}")
    steps, epoch = setup.total_steps, setup.batches.steps_per_epoch
    print(f"{steps:,} steps, {steps / epoch:.2f} epochs of {epoch:,} steps, {jax.default_backend()}", flush=True)


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
        return done.chars / (done.interval_seconds + now - self._since), left


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM add their number; the second signal acts as if nobody listened."""
    received = []

    def note(number, frame):
        del frame
        received.append(number)
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)

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
        print(f"{run.workdir} is done at step {status['step']}: {_best(status['best'])}.")
    return status["state"] == "done"


def _is_finished(setup: Setup, done: Progress) -> bool:
    return done.step >= setup.total_steps or 0 < setup.patience <= done.since_best


def _best_step(done: Progress) -> set[int]:
    return {done.best["step"]} if done.best else set()


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _best(best: dict | None) -> str:
    if best is None:
        return "not evaluated"
    perplexity = objective.perplexity(best["nats"])
    return f"best validation {best['nats']:.4f} nats/char, perplexity {perplexity:.4f}, at step {best['step']}"


def _reset_interval(done: Progress) -> None:
    done.nats, done.chars, done.grad_norm, done.steps, done.interval_seconds = 0.0, 0, 0.0, 0, 0.0
