"""Trains the trials of a pack as one compiled program.

Each trial is a training of its own (`train.training`), with its own run directory. This module answers the requests of all
trials together. It waits until every trial has asked, and chooses the trials with the lowest step: a trial that is behind
catches up first. It then puts the arguments of these trials into arrays with one more axis, the places of the pack, and makes
one call.

The compiled program maps the training step of one trial over the places. No number of one place is an operand of another place,
so a trial gets the same bits whatever the other trials are: NaN, ended, or with another seed. It depends only on the number of
places and on its own place. A pack therefore keeps the places of all its trials, even if some of them have ended, and after
`kill -9` each trial can resume from its own latest checkpoint.

Letters: N places of a pack, K steps of one call, B rows of a batch.
"""

import contextlib
import functools
import pathlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from charlm import progress as messages
from charlm.config import packs
from charlm.errors import Broken, Failure, UserError
from charlm.hardware import devices
from charlm.inference import evaluate
from charlm.models import dropout, stack
from charlm.training import optim, signals
from charlm.training.requests import Begin, Evaluation, Request, Steps, Training
from charlm.training.setup import Setup, set_up
from charlm.training.state import params_to_evaluate
from charlm.training.step import StepMetrics, TrainState, make_train_step, several
from charlm.training.train import training


class Trial(NamedTuple):
    """A trial of a pack.

    Attributes:
      name: the name of the trial in messages.
      workdir: the run directory.
      log: the file to which the output of the trial is appended.
      config: the checked config. The configs of a pack have the same `packs.signature`.
    """

    name: str
    workdir: str
    log: str
    config: ConfigDict


def train(places: Sequence[Trial | None], trust_code: bool = False) -> int:
    """Trains or resumes the trials of a pack. Returns the exit status: 1 if any trial diverged or failed.

    Args:
      places: the trials of the pack. None at a place whose trial must not be trained now.
      trust_code: whether the user trusts the code of cells in files, if a run directory names these files.

    Raises:
      Broken: a run directory can't be written. The error is raised after the other trials have ended.
    """
    setups: list[Setup] = []

    def make_setup(config: ConfigDict) -> Setup:
        setups.append(set_up(config, len(places), setups[0] if setups else None))
        return setups[-1]

    with contextlib.ExitStack() as stack_of_contexts:
        received = stack_of_contexts.enter_context(signals.caught())
        members: dict[int, _Member] = {}
        for place, trial in enumerate(places):
            if trial is not None:
                log = stack_of_contexts.enter_context(pathlib.Path(trial.log).open("a", encoding="utf-8", buffering=1))
                run = training(
                    trial.config,
                    trial.workdir,
                    trust_code=trust_code,
                    make_setup=make_setup,
                    caught=lambda: contextlib.nullcontext(received),
                )
                members[place] = _Member(trial.name, stack_of_contexts.enter_context(contextlib.closing(run)), log)
        _train_together(members, places)
    for member in members.values():
        if member.broken:
            raise member.broken
    statuses = [member.status for member in members.values()]
    return 128 + received[0] if received else int(any(statuses))


def _train_together(members: "dict[int, _Member]", places: Sequence[Trial | None]) -> None:
    """Answers the requests of the members until all of them have ended."""
    waiting: dict[int, Any] = {place: member.resume(None) for place, member in members.items()}
    waiting = {place: begin for place, begin in waiting.items() if begin is not None}
    if not waiting:
        return
    pack = Pack([trial and trial.config for trial in places], waiting)
    messages.tell(f"{messages.counted(len(waiting), 'trial')} in a pack on {messages.counted(pack.devices, 'device')}")
    answers: dict[int, Any] = {place: _Place(pack, place) for place in waiting}
    while True:
        for place, answer in answers.items():
            request = members[place].resume(answer)
            if request is None:
                waiting.pop(place, None)
            else:
                waiting[place] = request
        if not waiting:
            return
        try:
            answers = pack.answers(waiting)
        except Exception as error:
            for place in waiting:  # each training marks its run as failed
                with contextlib.suppress(type(error)):
                    members[place].training.throw(error)
            raise


class _Member:
    """A trial that is being trained.

    Attributes:
      status: the exit status of its training; None before its end.
      broken: the error because of which its run directory can't be written.
    """

    def __init__(self, name: str, training: Training, log: Any):
        self.name, self.training, self._log = name, training, log
        self.status: int | None = None
        self.broken: Broken | None = None

    def resume(self, answer: Any) -> Request | None:
        """Gives the training an answer, and returns its next request, or None if it has ended. Its output goes to its log.

        An error ends only this training.
        """
        with contextlib.redirect_stdout(self._log), contextlib.redirect_stderr(self._log):
            try:
                return self.training.send(answer)
            except StopIteration as end:
                self.status = end.value
            except (UserError, Failure) as error:
                self.status, self.broken = 1, error if isinstance(error, Broken) else None
                messages.tell(f"error: {' '.join(str(error).split())}")
            except Exception:
                self.status = 1
                messages.tell(traceback.format_exc())
        messages.tell(f"{self.name}: ended with status {self.status}")
        return None


class _Place:
    """The place of a trial; see `requests.Place`."""

    def __init__(self, pack: "Pack", place: int):
        self._pack, self._place = pack, place

    @property
    def state(self) -> TrainState:
        return self._pack.state_at(self._place)

    @state.setter
    def state(self, state: TrainState) -> None:
        self._pack.put(self._place, state)


class Pack:
    """The states of the trials on the devices, and the compiled program of the pack.

    The places are divided evenly among the devices, which do not communicate. If the division is not even, spare places follow
    the last trial. A place without a trial has the state and the arguments of another place, and its results are not used.

    Args:
      configs: the config of the trial at each place. None at a place whose trial is not trained.
      begins: place → the first request of its trial. Not every trial with a config has a request: its training may have ended.
    """

    def __init__(self, configs: Sequence[ConfigDict | None], begins: Mapping[int, Begin]):
        first = min(begins)
        config, setup = configs[first], begins[first].setup
        assert config is not None
        config = packs.of_pack(config)
        mesh = devices.trials_mesh(len(configs), devices.wanted(config))
        self.devices = mesh.size
        self._each = -(-len(configs) // mesh.size)
        self._trained = [place if place in begins else first for place in range(mesh.size * self._each)]
        self._by_place = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
        self._setup = setup
        self._state = self._put(_stacked([begins[place].state for place in self._trained]))
        self._values = self._put(_stacked([_values(configs[place]) for place in self._trained]))
        over_places = functools.partial(jax.shard_map, mesh=mesh, out_specs=self._by_place.spec, check_vma=False)
        step = functools.partial(_step, config, setup)
        self._one, self._many = (
            jax.jit(over_places(jax.vmap(functools.partial(step, form)), in_specs=self._by_place.spec), donate_argnums=0)
            for form in (lambda train_step: train_step, several)
        )
        window = jax.vmap(evaluate.make_window(setup.functions), in_axes=(0, None, 0))
        in_specs = (self._by_place.spec, PartitionSpec(), self._by_place.spec)
        self._window = jax.jit(over_places(window, in_specs=in_specs), donate_argnums=2)

    def answers(self, waiting: Mapping[int, Steps | Evaluation]) -> dict[int, Any]:
        """The answers to the requests of the trials with the lowest step. If some of these ask for an evaluation, only to them.

        Args:
          waiting: place → the request of its trial.
        """
        lowest = min(request.step for request in waiting.values())
        evaluations: dict[int, Evaluation] = {}
        steps: dict[int, Steps] = {}
        for place, request in waiting.items():
            if request.step == lowest and isinstance(request, Evaluation):
                evaluations[place] = request
            elif request.step == lowest and isinstance(request, Steps):
                steps[place] = request
        return self._evaluated(evaluations) if evaluations else self._stepped(steps)

    def state_at(self, place: int) -> TrainState:
        """A copy of the state at a place, on the first device."""
        number, index = divmod(place, self._each)
        of_device = jax.tree.map(lambda leaf: leaf.addressable_data(number), self._state)
        return jax.device_put(_picked(of_device, index), jax.devices()[0])

    def put(self, place: int, state: TrainState) -> None:
        """Replaces the state at a place."""

        def changed(leaf_N: np.ndarray, leaf: np.ndarray) -> np.ndarray:
            return np.stack([leaf if each == place else leaf_N[each] for each in range(len(leaf_N))])

        self._state = self._put(jax.tree.map(changed, *jax.device_get((self._state, state))))

    def _stepped(self, requests: Mapping[int, Steps]) -> dict[int, Callable[[], StepMetrics]]:
        """Makes the steps of these requests, which all have the same number of steps."""
        first = min(requests)
        arguments = _stacked([requests[place if place in requests else first].arguments for place in self._trained])
        active_N = np.array([place in requests for place in range(len(self._trained))])
        call = self._one if requests[first].number == 1 else self._many
        self._state, metrics = call(self._state, active_N, self._values, *arguments)
        fetched = functools.cache(functools.partial(jax.device_get, metrics))
        return {place: functools.partial(_metrics_at, fetched, place) for place in requests}

    def _evaluated(self, requests: Mapping[int, Evaluation]) -> dict[int, tuple[float, int] | None]:
        """Evaluates all places, and returns the results of these requests."""
        setup, received = self._setup, requests[min(requests)].received
        if "validation" not in setup.encoded:
            return dict.fromkeys(requests, (0.0, 0))
        zero_carry = setup.functions.zero_carry(setup.protocol.rows_at_once)
        sums = evaluate.summed(
            self._window,
            params_to_evaluate(self._state),
            setup.protocol.batches(setup.encoded["validation"]),
            self._put(_stacked([zero_carry] * len(self._trained))),
            lambda: bool(received),
        )
        return {place: None if sums is None else (float(sums[0, place]), int(sums[1, place])) for place in requests}

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, self._by_place)


def _step(
    config: ConfigDict,
    setup: Setup,
    form: Callable[[Callable], Callable],
    state: TrainState,
    is_active: jax.Array,
    values: dict[str, jax.Array],
    *arguments: Any,
) -> tuple[TrainState, StepMetrics]:
    """One call of the training step for the trial at one place.

    Args:
      config, setup: of any trial of the pack.
      form: makes the function of a call from the function of a step; see `step.several`.
      is_active: bool scalar. False if the trial at this place makes no step now. Its state then stays the same.
      values: the values of this trial; see `_values`.
      arguments: the arguments of the call after the state.
    """
    config = packs.with_values(config, values)
    functions = stack.functions(config, len(setup.vocab))
    optimizer = optim.optimizer(config, setup.batches.steps_per_epoch)
    call = form(make_train_step(functions, optimizer, None, setup.pad, setup.averaging))
    after, metrics = call(state, *arguments)
    return jax.tree.map(functools.partial(jnp.where, is_active), after, state), metrics


def _values(config: ConfigDict | None) -> dict[str, np.float32]:
    """The values of the config that the program of the pack takes as arrays. Dropout rates are multiples of 2^-16."""
    assert config is not None
    values = packs.values_on_device(config)
    return {key: np.float32(dropout.rounded(value) if key in packs.DROPOUT else value) for key, value in values.items()}


def _stacked(trees: Sequence[Any]) -> Any:
    """One tree from the trees of all places. Each array gets a first axis N."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _metrics_at(fetched: Callable[[], StepMetrics], place: int) -> StepMetrics:
    return jax.tree.map(lambda leaf: leaf[place], fetched())


@jax.jit
def _picked(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)
