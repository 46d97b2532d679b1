"""The training loop: trains, logs, evaluates, saves, and resumes a stopped run.

`training` and `loop` are generators that ask for the devices; see `requests`.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Generator
from typing import Any

from ml_collections import ConfigDict

from charlm import progress as messages
from charlm.errors import Failure
from charlm.hardware import processes
from charlm.models.cells import own
from charlm.rundir import run as run_module
from charlm.rundir.checkpoint import Checkpoints
from charlm.training import inheriting, judging, opening, signals
from charlm.training.feeding import arguments_maker, steps_at_once
from charlm.training.judging import Diverged
from charlm.training.record import Clock, NoRecord, Record
from charlm.training.requests import Begin, Evaluation, Place, Request, Steps, Training, run_alone
from charlm.training.setup import Setup, describe, set_up
from charlm.training.state import Progress, Sums, params_to_evaluate, resumed, with_begun_average


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
    return run_alone(training(config, workdir, verbose, extend, all_rows, trust_code))


def training(
    config: ConfigDict,
    workdir: str,
    verbose: bool = False,
    extend: bool = False,
    all_rows: bool = False,
    trust_code: bool = False,
    make_setup: Callable[[ConfigDict], Setup] = set_up,
    caught: Callable[[], contextlib.AbstractContextManager[list[int]]] = signals.caught,
) -> Training:
    """A training as a generator of requests. Returns the exit status. `train` describes the other arguments and the errors.

    Args:
      make_setup: makes the setup of the config.
      caught: yields the list to which the numbers of received signals are appended.
    """
    run = run_module.Run(workdir)
    with processes.detect_process_loss(), contextlib.ExitStack() as stack:
        if processes.run_on_first_process(opening.has_ended, run, config, extend):
            return 0
        setup = opening.identical_setup(run, config, trust_code, make_setup)
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
        place: Place = yield Begin(setup, state)
        del state  # the place has it now
        received, stopped_by = stack.enter_context(caught()), None
        while stopped_by is None:
            try:
                with Record(setup, run, checkpoints, progress, all_rows) if checkpoints else NoRecord() as record:
                    stopped_by = yield from loop(setup, record, place, progress, received)
            except Diverged as error:
                place.state, progress = opening.go_back(error, setup, run, checkpoints, progress)
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


def loop(setup: Setup, record: Any, place: Place, progress: Progress, received: list[int]) -> Generator[Request, Any, int]:
    """Trains until the run is finished or a signal arrives. Returns 0, or the number of the signal.

    A call of the compiled function makes one step or several steps. The loop starts the next call before it fetches the metrics
    of the previous call, so that the device never waits for the host.
    """
    arguments, clock = arguments_maker(setup), Clock(progress)
    pending = None  # fetches the metrics of the latest call; None if these metrics have been fetched
    finished, stopping = judging.is_finished(setup, progress), signals.ask_to_stop(received)
    while not (finished or stopping):
        stopping = signals.ask_to_stop(received)
        # If a signal interrupted an evaluation, the resumed run must repeat this evaluation before it makes a step.
        if not (stopping or judging.is_evaluation_due(setup, progress)):
            count = steps_at_once(setup, progress.step)
            metrics = yield Steps(progress.step, count, arguments(progress, count, received))
            if pending is not None:
                stopping = judging.add_metrics(progress, pending()) or stopping
                record.step(progress, clock)
            pending, progress.step, progress.evaluated = metrics, progress.step + count, None
        evaluate_now = judging.is_evaluation_due(setup, progress)
        log_now = pending is not None and judging.is_log_due(setup, progress)
        save_now = evaluate_now or stopping or judging.is_checkpoint_due(setup, progress)
        if pending is not None and (log_now or save_now):
            stopping = judging.add_metrics(progress, pending()) or stopping
            save_now, pending = save_now or stopping, None
            record.step(progress, clock)
            clock.lap(training=True)
        if log_now:
            row = judging.train_row(setup, progress)
            record.row(row, clock)
            judging.check_loss(row["nats"], f"the mean loss up to step {progress.step}")
            progress.interval, progress.interval_seconds = Sums(), 0.0
        if evaluate_now:
            begin = time.perf_counter()
            sums = yield Evaluation(progress.step, received)
            if sums is None:
                stopping = True
            else:
                rows = judging.evaluation_rows(setup, progress, sums, time.perf_counter() - begin)
                judging.judge(setup, progress, rows[-1])
                if judging.begins_average(setup, progress, rows):
                    place.state = with_begun_average(place.state)
                    record.say(f"the average of the weights begins at step {progress.step}.")
                record.evaluation(progress, rows, params_to_evaluate(place.state))
                progress.epoch, finished = Sums(), judging.is_finished(setup, progress)
        clock.lap(training=not (log_now or save_now))
        if save_now:
            state = place.state
            judging.check_params(state.params, progress.step)
            record.save(progress, processes.gather_rows(state))
            clock.lap(training=False)
    record.end(progress, finished)
    return 0 if finished else (received or [signal.SIGTERM])[0]
