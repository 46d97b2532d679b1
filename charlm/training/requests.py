"""What a training asks of the devices, and who answers if it trains alone.

`train.training` is a generator. It yields a request when it needs the devices, and receives the answer. All other work, such as
logging and saving checkpoints, happens inside the generator. `run_alone` answers the requests of one training. The module
`packing` answers the requests of several trainings together.
"""

import contextlib
import functools
from collections.abc import Generator
from typing import Any, NamedTuple, Protocol

import jax

from charlm.hardware import devices, processes
from charlm.inference import evaluate
from charlm.training.setup import Setup
from charlm.training.state import params_to_evaluate
from charlm.training.step import TrainState, make_train_step, several


class Place(Protocol):
    """The place on the devices where the state of a training is. The training can read and replace the state."""

    state: TrainState


class Begin(NamedTuple):
    """Asks for a place for the state before the next step. The answer is a `Place`."""

    setup: Setup
    state: TrainState


class Steps(NamedTuple):
    """Asks for training steps. The answer is a function that waits for these steps, and returns their StepMetrics on the host.

    Attributes:
      step: the number of steps made so far.
      number: the number of steps to make in one call.
      arguments: what the function of `feeding.arguments_maker` returns.
    """

    step: int
    number: int
    arguments: tuple


class Evaluation(NamedTuple):
    """Asks for the loss on the validation split. The answer is (nats, chars), or None if a signal arrived.

    If the corpus has no validation split, the answer is (0, 0).

    Attributes:
      step: the number of steps made so far.
      received: the list of received signals.
    """

    step: int
    received: list[int]


Request = Begin | Steps | Evaluation
Training = Generator[Request, Any, int]


class Alone:
    """The place of a training that trains alone."""

    def __init__(self, setup: Setup, state: TrainState):
        self.state = state
        self._setup = setup
        train_step = make_train_step(setup.functions, setup.optimizer, setup.mesh, setup.pad, setup.averaging)
        self._one, self._many = jax.jit(train_step, donate_argnums=0), jax.jit(several(train_step), donate_argnums=0)
        self._evaluate = evaluate.evaluator(setup.functions, devices.local(setup.mesh))

    def answer(self, request: Steps | Evaluation) -> Any:
        """The answer to a request. Does not wait until the steps of a request are made."""
        if isinstance(request, Steps):
            self.state, metrics = (self._one if request.number == 1 else self._many)(self.state, *request.arguments)
            return functools.partial(jax.device_get, metrics)
        return processes.run_on_first_process(self._validation, request.received)

    def _validation(self, received: list[int]) -> tuple[float, int] | None:
        if "validation" not in self._setup.encoded:
            return 0.0, 0
        params = params_to_evaluate(self.state)
        if processes.count() > 1:
            params = evaluate.on_one_device(params)
        return self._evaluate(params, self._setup.encoded["validation"], self._setup.protocol, lambda: bool(received))


def run_alone(training: Training) -> int:
    """Runs a training to its end. Returns its exit status."""
    place: Alone
    with contextlib.closing(training):
        try:
            request = next(training)
            while True:
                answer: Any
                try:
                    if isinstance(request, Begin):
                        answer = place = Alone(*request)
                    else:
                        answer = place.answer(request)
                except Exception as error:
                    request = training.throw(error)  # the training marks its run as failed
                else:
                    request = training.send(answer)
        except StopIteration as end:
            return end.value
