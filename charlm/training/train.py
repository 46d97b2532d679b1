"""The training loop: trains, logs, evaluates, saves, and resumes a stopped run."""

import contextlib
import signal
from typing import Any

import jax
from ml_collections import ConfigDict

from charlm import progress as messages
from charlm.errors import Failure
from charlm.hardware import devices, processes
from charlm.inference import evaluate
from charlm.models.cells import own
from charlm.rundir import run as run_module
from charlm.rundir.checkpoint import Checkpoints
from charlm.training import inheriting, judging, opening, signals
from charlm.training.feeding import arguments_maker, steps_at_once
from charlm.training.judging import Diverged
from charlm.training.record import Clock, NoRecord, Record
from charlm.training.setup import Setup, describe
from charlm.training.state import Progress, Sums, TrainState, params_to_evaluate, resumed, with_begun_average
from charlm.training.step import make_train_step, several


def train(
    config: ConfigDict,
    workdir: str,
    verbose: bool = False,
    extend: bool = False,
    all_rows: bool = False,
    trust_code: bool = False,
) -> int:
    """Trains a model, or resumes the run in the run directory. Returns the exit status.

    With several processes, every process calls this function. Only the first process reads and writes the run directory.

    Args:
      config: a config that has been checked, for example by `load.load`.
      workdir: the run directory.
      verbose: whether to print the name and shape of every parameter.
      extend: whether the config may change the length, the learning rate, the evaluations and the samples of the run in the
        run directory.
      all_rows: whether to print the rows of log intervals on a terminal too.
      trust_code: whether the user trusts the code of cells in files, if a run directory names these files.

    Raises:
      UserError: the run directory or the corpus can't be used.
      Failure: the run diverged.
      Broken (a Failure): the run directory can't be written, or another process of the same training has ended.
    """
    run = run_module.Run(workdir)
    with processes.detect_process_loss(), contextlib.ExitStack() as stack:
        if processes.run_on_first_process(opening.has_ended, run, config, extend):
            return 0
        setup = opening.identical_setup(run, config, trust_code)
        stack.enter_context(run.writing())
        if processes.run_on_first_process(opening.open_run, run, config, setup, stack, extend, trust_code):
            return 0
        is_first = processes.is_first()
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(run.checkpoints))) if is_first else None
        state, progress = resumed(setup, run, checkpoints)
        if is_first:
            describe(setup, state.params, verbose)
            if progress.step == 0 and (parent := run.parent()):
                inheriting.tell(parent)
        received, stopped_by = stack.enter_context(signals.caught()), None
        while stopped_by is None:
            try:
                with Record(setup, run, checkpoints, progress, all_rows) if checkpoints else NoRecord() as record:
                    stopped_by = loop(setup, record, state, progress, received)
            except Diverged as error:
                state, progress = opening.go_back(error, setup, run, checkpoints, progress)
            except Exception as error:
                if is_first and not isinstance(error, Failure) and not processes.is_process_loss(error):
                    opening.mark_failed(run, progress, error)
                raise
    if is_first and stopped_by:
        flag = " with --trust_code" if own.names(config) and not trust_code else ""
        messages.tell(f"stopped at step {progress.step} of {setup.total_steps}: the same command{flag} resumes from there.")
    elif is_first:
        seconds, best = messages.duration(progress.seconds), judging.best_in_words(progress.best)
        messages.tell(f"done at step {progress.step} in {seconds}: {best}.")
    return 128 + stopped_by if stopped_by else 0


def loop(setup: Setup, record: Any, state: TrainState, progress: Progress, received: list[int]) -> int:
    """Trains until the run is finished or a signal arrives. Returns 0, or the number of the signal.

    A call of the compiled function makes one step or several steps. The loop starts the next call before it fetches the metrics
    of the previous call, so that the device never waits for the host.
    """
    train_step = make_train_step(setup.functions, setup.optimizer, setup.mesh, setup.pad, setup.averaging)
    one, many = jax.jit(train_step, donate_argnums=0), jax.jit(several(train_step), donate_argnums=0)
    evaluate_split = evaluate.evaluator(setup.functions, devices.local(setup.mesh))
    arguments, clock = arguments_maker(setup), Clock(progress)
    pending = None  # the metrics of the latest call, or None if these metrics have been fetched
    finished, stopping = judging.is_finished(setup, progress), signals.ask_to_stop(received)
    while not (finished or stopping):
        stopping = signals.ask_to_stop(received)
        # If a signal interrupted an evaluation, the resumed run must repeat this evaluation before it makes a step.
        if not (stopping or judging.is_evaluation_due(setup, progress)):
            count = steps_at_once(setup, progress.step)
            state, metrics = (one if count == 1 else many)(state, *arguments(progress, count, received))
            if pending is not None:
                stopping = judging.add_metrics(progress, pending) or stopping
                record.step(progress, clock)
            pending, progress.step, progress.evaluated = metrics, progress.step + count, None
        evaluate_now = judging.is_evaluation_due(setup, progress)
        log_now = pending is not None and judging.is_log_due(setup, progress)
        save_now = evaluate_now or stopping or judging.is_checkpoint_due(setup, progress)
        if pending is not None and (log_now or save_now):
            stopping = judging.add_metrics(progress, pending) or stopping
            save_now, pending = save_now or stopping, None
            record.step(progress, clock)
            clock.lap(training=True)
        if log_now:
            row = judging.train_row(setup, progress)
            record.row(row, clock)
            judging.check_loss(row["nats"], f"the mean loss up to step {progress.step}")
            progress.interval, progress.interval_seconds = Sums(), 0.0
        if evaluate_now:
            params = params_to_evaluate(state)
            rows = processes.run_on_first_process(judging.evaluation_rows, setup, progress, evaluate_split, params, received)
            if rows is None:
                stopping = True
            else:
                judging.judge(setup, progress, rows[-1])
                if judging.begins_average(setup, progress, rows):
                    state = with_begun_average(state)
                    record.say(f"the average of the weights begins at step {progress.step}.")
                record.evaluation(progress, rows, params)
                progress.epoch, finished = Sums(), judging.is_finished(setup, progress)
        clock.lap(training=not (log_now or save_now))
        if save_now:
            judging.check_params(state.params, progress.step)
            record.save(progress, processes.gather_rows(state))
            clock.lap(training=False)
    record.end(progress, finished)
    return 0 if finished else (received or [signal.SIGTERM])[0]
