"""Dynamic evaluation: the weights of a trained model learn from a text while the model reads it (Krause et al. 2018).

The text is read as a stream, in segments of L characters. The model first scores a segment. Then it learns from this segment:

    theta += min(lambda s / mean(s), 1) (theta_0 - theta) - eta g / (s + epsilon)

theta is a weight, and theta_0 is its trained value. g is the gradient of the mean loss of the segment. s is the root mean
square of g over the segments of the training text. While s is computed, the weights keep their trained values. Each weight has
its own s, and mean(s) is the mean of s over all weights.

The term with lambda lets a weight decay to its trained value. A weight with a large s decays faster. The term with eta is a
step of gradient descent, divided by s + epsilon. The recurrent state is carried from segment to segment. Gradients do not flow
back into the previous segment.

To compute s, the training text is cut into parts (lanes), which are read at the same time. In each step, every lane reads one
segment. A separate gradient for each of these segments would need too much time and memory. Therefore, the loss of each lane is
multiplied by a random sign, +1 or -1. The program computes only the gradient of the sum of these losses, and squares it. The
square contains products of the gradients of two different lanes. Over many steps, these products cancel out, because the signs
of two lanes are independent. The sum of the squared gradients of the single segments is left. With one lane, there are no such
products, so s is exact. The signs come from a fixed random seed, so they are the same in each evaluation.

Reference: https://arxiv.org/abs/1709.07432

Letters in the names of arrays: B rows or lanes, T characters of a segment (T is L, and T1 is T + 1), K segments that one call
of a compiled program reads, N ids of a text, M = N - 1 scored characters.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charlm.data.batches import Batch
from charlm.data.longtext import Ids
from charlm.errors import Failure, UserError
from charlm.models.stack import Functions
from charlm.progress import counted

SEGMENT = 20
# The published settings, for segments of PUBLISHED_SEGMENT characters. For segments of another length, the learning rate and
# lambda (PUBLISHED_DECAY) are multiplied by length / PUBLISHED_SEGMENT.
PUBLISHED_SEGMENT, PUBLISHED_RATE, PUBLISHED_DECAY, PUBLISHED_EPSILON = 5, 5e-5, 2e-3, 2e-5
# A grid multiplies the learning rate and lambda by these factors.
GRID_RATES, GRID_DECAYS = (0.5, 1.0, 2.0, 4.0, 8.0), (0.0, 1.0, 3.0)
GRID_PART = 0.2  # a grid is tuned on this fraction of the validation split, at the beginning of the split
MOST_LANES = 64  # the largest number of lanes in which the statistics (s for each weight) are computed
STEPS_OF_STATISTICS = 256  # each lane has at least this number of segments, so a short text has few lanes
CALL_CHARS = 1024  # one call of a compiled program reads about this number of characters of each lane


class Settings(NamedTuple):
    """The settings of a dynamic evaluation. The formula at the beginning of this module shows their effect.

    Attributes:
      segment: L, the number of characters of a segment.
      learning_rate: eta.
      decay: lambda.
      epsilon: a positive number that is added to s, so that no step divides by zero.
    """

    segment: int
    learning_rate: float
    decay: float
    epsilon: float

    @classmethod
    def of(
        cls,
        segment: int | None = None,
        learning_rate: float | None = None,
        decay: float | None = None,
        epsilon: float | None = None,
    ) -> "Settings":
        """Checks the settings, and replaces None by a default.

        The default segment is SEGMENT. The default learning rate and lambda are the published values times
        segment / PUBLISHED_SEGMENT. The default epsilon is the published value.

        Raises:
          UserError: a setting is not in its range. The message names the flag of evaluate.py.
        """
        segment = SEGMENT if segment is None else segment
        if segment < 1:
            raise UserError(f"--dynamic_segment={segment}: must be 1 or more.")
        scale = segment / PUBLISHED_SEGMENT
        learning_rate = PUBLISHED_RATE * scale if learning_rate is None else learning_rate
        decay = PUBLISHED_DECAY * scale if decay is None else decay
        epsilon = PUBLISHED_EPSILON if epsilon is None else epsilon
        for flag, value in (("learning_rate", learning_rate), ("lambda", decay)):
            if not 0 <= value < math.inf:
                raise UserError(f"--dynamic_{flag}={value:g}: must be 0 or more.")
        if not 0 < epsilon < math.inf:
            raise UserError(f"--dynamic_epsilon={epsilon:g}: must be above 0.")
        return cls(segment, learning_rate, decay, epsilon)

    def in_words(self) -> str:
        return (
            f"dynamic evaluation, segments of {self.segment}, learning rate {self.learning_rate:g}, lambda {self.decay:g}, "
            f"epsilon {self.epsilon:g}"
        )

    def grid(self) -> list["Settings"]:
        """The settings that a grid tries: each pair of a learning rate and a lambda."""
        pairs = itertools.product(GRID_RATES, GRID_DECAYS)
        tried = [self._replace(learning_rate=self.learning_rate * rate, decay=self.decay * decay) for rate, decay in pairs]
        return list(dict.fromkeys(tried))  # if a value is 0, its multiples are equal


Progress = Callable[[int, float], None]  # called with the number of characters just read, and their nats


def check_length(ids_N: Ids, segment: int, where: str) -> None:
    """Raises a UserError if a text is shorter than one segment. The first character of a text is not scored."""
    if len(ids_N) - 1 < segment:
        raise UserError(
            f"{where} has {counted(len(ids_N), 'char')}, but one segment of --dynamic_segment={segment} needs at least "
            f"{segment + 1:,}: give a smaller --dynamic_segment or a longer text."
        )


def lanes_of(ids_N: Ids, segment: int) -> int:
    """The number of lanes in which `Evaluator.statistics` reads this text."""
    return max(1, min(MOST_LANES, (len(ids_N) - 1) // segment // STEPS_OF_STATISTICS))


class Evaluator:
    """Runs dynamic evaluations of one model. JAX compiles its programs once for each length of a segment.

    Args:
      model: the model as pure functions.

    Attributes:
      known_scales: a dict from a segment length L to the statistics over the run's training text in segments of L characters.
        `dynamic_run.evaluate` stores the statistics here, so that it computes them only once for each L.
    """

    def __init__(self, model: Functions):
        self._model, self._grad = model, model.grad(self._loss, has_aux=True)
        self.known_scales: dict[int, Any] = {}
        self._add_squares = jax.jit(self._squares_of_call, donate_argnums=(1, 2))
        self._learn = jax.jit(self._learning_of_call, donate_argnums=(0, 1))
        self._prepare = jax.jit(_factors)

    def statistics(self, params: Any, ids_N: Ids, segment: int, progress: Progress = lambda chars, nats: None) -> Any:
        """s for each weight: the root of the mean squared gradient over the segments of a text.

        Each lane starts from the zero state. If the last characters of a lane do not fill a segment, they are left out.

        Args:
          params: the trained weights.
          ids_N: the training text.
          segment: the number of characters of a segment.

        Raises:
          UserError: the text is shorter than one segment.
        """
        check_length(ids_N, segment, "the train split")
        lanes = lanes_of(ids_N, segment)
        carry, squares = self._zero_carry(lanes, params), jax.tree.map(jnp.zeros_like, params)
        stride = (len(ids_N) - 1) // lanes
        segments = stride // segment
        starts_B = np.arange(lanes) * stride
        key = jax.random.key(0)
        for begin, count, positions_KBT1 in _calls(starts_B, segments, segment):
            is_valid_K = np.arange(len(positions_KBT1)) < count
            ids_KBT1 = _ids(ids_N, np.minimum(positions_KBT1, len(ids_N) - 1))
            signs_KB = jax.random.rademacher(jax.random.fold_in(key, begin), ids_KBT1.shape[:2], jnp.float32)
            squares, carry, nats = self._add_squares(params, squares, carry, ids_KBT1, is_valid_K, signs_KB)
            progress(count * segment * lanes, float(nats))
        return jax.tree.map(lambda sum_: jnp.sqrt(sum_ / (segments * lanes)), squares)

    def nats(
        self, params: Any, scales: Any, ids_N: Ids, settings: Settings, progress: Progress = lambda chars, nats: None
    ) -> np.ndarray:
        """Scores a text by dynamic evaluation, and returns the nats of each character except the first, float32 (M,).

        Args:
          params: the trained weights. They are not changed.
          scales: s for each weight, as `statistics` returns it.
          ids_N: the text.
          settings: the settings.

        Raises:
          UserError: the text is shorter than one segment.
          Failure: the loss is not a finite number, because the learning rate is too high.
        """
        check_length(ids_N, settings.segment, "the text")
        rates, decays = self._prepare(scales, settings.learning_rate, settings.decay, settings.epsilon)
        # The compiled program overwrites the weights that it receives, so it receives a copy of the trained weights.
        weights, carry = jax.tree.map(jnp.copy, params), self._zero_carry(1, params)
        scored, parts = len(ids_N) - 1, []
        for begin, _, positions_KBT1 in _calls(np.zeros(1, np.int64), -(-scored // settings.segment), settings.segment):
            targets_KT = positions_KBT1[:, 0, 1:]
            ids_KT1 = _ids(ids_N, np.minimum(positions_KBT1, scored))[:, 0]
            weights_KT = (targets_KT <= scored).astype(np.float32)
            weights, carry, nats_KT = self._learn(weights, carry, params, rates, decays, ids_KT1, weights_KT)
            nats = np.asarray(nats_KT).reshape(-1)[: scored - begin * settings.segment]
            if not np.isfinite(nats).all():
                position = begin * settings.segment + int(np.argmin(np.isfinite(nats))) + 2
                raise Failure(
                    f"dynamic evaluation diverged at character {position:,} of the text (learning rate "
                    f"{settings.learning_rate:g}): give a lower --dynamic_learning_rate."
                )
            parts.append(nats)
            progress(len(nats), float(nats.sum(dtype=np.float64)))
        return np.concatenate(parts)

    def _zero_carry(self, rows: int, params: Any) -> Any:
        """The zero state, on the devices of the parameters. Later states are there too, so JAX compiles only once."""
        return jax.device_put(self._model.zero_carry(rows), jax.tree.leaves(params)[0].sharding)

    def _loss(self, params, carry, ids_BT1, weights_BT, signs_B):
        """Returns the sum of sign times mean loss over the rows, and the pair (nats of each character, new carry)."""
        inputs_BT, targets_BT = ids_BT1[:, :-1], ids_BT1[:, 1:]
        batch = Batch(inputs_BT, targets_BT, weights_BT, jnp.zeros(len(ids_BT1), bool))
        logits_BTV, carry = self._model.apply(params, batch, carry)
        log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        nats_BT = log_z_BT - jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        means_B = (weights_BT * nats_BT).sum(1) / jnp.maximum(weights_BT.sum(1), 1)
        return (signs_B * means_B).sum(), (nats_BT, carry)

    def _squares_of_call(self, params, squares, carry, ids_KBT1, is_valid_K, signs_KB):
        def segment(state, of_segment):
            squares, carry = state
            ids_BT1, is_valid, signs_B = of_segment
            weights_BT = jnp.ones(ids_BT1[:, 1:].shape)
            gradients, (nats_BT, carry) = self._grad(params, carry, ids_BT1, weights_BT, signs_B)
            squares = jax.tree.map(lambda sum_, g: sum_ + is_valid * g * g, squares, gradients)
            return (squares, carry), is_valid * nats_BT.sum()

        valid_K = is_valid_K.astype(jnp.float32)
        (squares, carry), nats_K = jax.lax.scan(segment, (squares, carry), (ids_KBT1, valid_K, signs_KB))
        return squares, carry, nats_K.sum()

    def _learning_of_call(self, weights, carry, params, rates, decays, ids_KT1, weights_KT):
        def segment(state, of_segment):
            weights, carry = state
            ids_T1, weights_T = of_segment
            gradients, (nats_BT, carry) = self._grad(weights, carry, ids_T1[None], weights_T[None], jnp.ones(1))
            weights = jax.tree.map(
                lambda weight, trained, g, rate, decay: weight + decay * (trained - weight) - rate * g,
                weights,
                params,
                gradients,
                rates,
                decays,
            )
            return (weights, carry), nats_BT[0]

        (weights, carry), nats_KT = jax.lax.scan(segment, (weights, carry), (ids_KT1, weights_KT))
        return weights, carry, nats_KT


def _factors(scales: Any, learning_rate: jax.Array, decay: jax.Array, epsilon: jax.Array) -> tuple[Any, Any]:
    """Returns two factors for each weight: eta / (s + epsilon) for its gradient, and the factor of its decay."""
    leaves = jax.tree.leaves(scales)
    mean = sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)
    rates = jax.tree.map(lambda s: learning_rate / (s + epsilon), scales)
    decays = jax.tree.map(lambda s: jnp.minimum(decay * s / jnp.maximum(mean, jnp.finfo(jnp.float32).tiny), 1), scales)
    return rates, decays


def _calls(starts_B: np.ndarray, segments: int, segment: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields a tuple for each call of a compiled program, which reads K segments of each lane.

    The tuple has the index of the first segment of the call, the number of its segments that lie inside the lane, and the
    positions of the ids of all K segments. K is the same in all calls, so that JAX compiles only one program. Some segments of
    the last call may therefore lie behind the end of the lane.
    """
    number = min(segments, max(1, CALL_CHARS // segment))
    for begin in range(0, segments, number):
        firsts_KB = starts_B[None, :] + (begin + np.arange(number))[:, None] * segment
        yield begin, min(number, segments - begin), firsts_KB[..., None] + np.arange(segment + 1)[None, None, :]


def _ids(ids_N: Ids, positions: np.ndarray) -> np.ndarray:
    return ids_N[positions].astype(np.int32)
