"""Text from a model: one jitted loop that carries the LSTM state, and the rules by which it picks the next character.

Letters: B rows, N steps of a chunk, P symbols of the prompt, V vocabulary.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charlm.batches import Batch
from charlm.model import Functions

CHUNK = 64  # steps between two looks at what was drawn


class Decoding(NamedTuple):
    """How the next character is picked; the rules apply in this order.

    Attributes:
      temperature: logits are divided by it; 0 is greedy, the most probable character always.
      top_k: only the k most probable stay; 0: all.
      top_p: of these, the fewest whose probabilities sum to at least p stay (Holtzman et al. 2020); 1: all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def sampler(model: Functions, vocab_size: int, decoding: Decoding, never: tuple[int, ...] = ()):
    """A function (params, prompt_ids, rows, length, key) → iterator of (B, n) arrays of ids, prompt excluded.

    Args:
      never: ids that are not to be drawn, such as that of `<unk>`.

    The prompt is fed through the same loop, so that one compiled program serves prompts of every length. What a row draws at a
    position depends on the key, the row and the position alone: a longer sample begins like a shorter one.
    """
    allowed_V = np.ones(vocab_size, bool)
    allowed_V[list(never)] = False

    @functools.partial(jax.jit, donate_argnums=1)
    def chunk(params, carry, ids_B, forced_NB, key):
        noise_NBV = _noise(key, forced_NB.shape[1], vocab_size)

        def step(state, at):
            carry, ids_B = state
            forced_B, noise_BV = at
            one_B1 = jnp.ones((ids_B.shape[0], 1))
            batch = Batch(ids_B[:, None], ids_B[:, None], one_B1, jnp.zeros_like(ids_B, bool))
            logits_BSV, carry = model.apply(params, batch, carry)
            logits_BV = jnp.where(jnp.asarray(allowed_V)[None, :], logits_BSV[:, 0], -jnp.inf)
            drawn_B = pick(logits_BV, noise_BV, decoding)
            ids_B = jnp.where(forced_B >= 0, forced_B, drawn_B).astype(jnp.int32)
            return (carry, ids_B), ids_B

        (carry, ids_B), ids_NB = jax.lax.scan(step, (carry, ids_B), (forced_NB, noise_NBV))
        return carry, ids_B, ids_NB

    def generate(params, prompt_ids: np.ndarray, rows: int, length: int, key) -> Iterator[np.ndarray]:
        carry = model.zero_carry(rows)
        ids_B = jnp.full(rows, prompt_ids[0], jnp.int32)
        given = len(prompt_ids) - 1  # steps whose outcome the prompt dictates
        steps = given + length if length else 0
        ahead = None  # what the chunk before drew: it is fetched while this one runs
        for start in range(0, steps, CHUNK):
            forced_N = np.full(CHUNK, -1, np.int32)
            rest_of_prompt = prompt_ids[1 + start : 1 + start + CHUNK]
            forced_N[: len(rest_of_prompt)] = rest_of_prompt
            forced_NB = np.repeat(forced_N[:, None], rows, axis=1)
            carry, ids_B, ids_NB = chunk(params, carry, ids_B, forced_NB, jax.random.fold_in(key, start // CHUNK))
            if ahead is not None:
                yield from _free(*ahead, given, steps)
            ahead = (start, ids_NB)
        if ahead is not None:
            yield from _free(*ahead, given, steps)

    return generate


def pick(logits_BV, noise_BV, decoding: Decoding):
    """(B,) ids drawn from logits by the Gumbel-max trick, after temperature, top-k and top-p.

    Args:
      logits_BV: float32, -inf where a symbol is not allowed.
      noise_BV: standard Gumbel noise.
    """
    if decoding.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / decoding.temperature
    if 0 < decoding.top_k < logits_BV.shape[-1]:
        smallest_B1 = jax.lax.top_k(logits_BV, decoding.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= smallest_B1, logits_BV, -jnp.inf)
    if decoding.top_p < 1:
        descending_BV = -jnp.sort(-logits_BV, axis=-1)
        probabilities_BV = jax.nn.softmax(descending_BV, axis=-1)
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        kept_BV = (before_BV < decoding.top_p) & jnp.isfinite(descending_BV)
        smallest_B1 = jnp.min(jnp.where(kept_BV, descending_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= smallest_B1, logits_BV, -jnp.inf)
    return jnp.argmax(logits_BV + noise_BV, axis=-1)


def _noise(key, rows: int, vocab_size: int):
    """(N, B, V) standard Gumbel noise, each row from a key of its own."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))
    return jax.vmap(lambda row_key: jax.random.gumbel(row_key, (CHUNK, vocab_size)), out_axes=1)(keys)


def _free(start: int, ids_NB, given: int, steps: int) -> Iterator[np.ndarray]:
    """The (B, n) ids of a chunk that the prompt did not dictate and that the length asks for; nothing where there are none."""
    ids_BN = np.asarray(ids_NB).T
    free = ids_BN[:, max(0, given - start) : max(0, steps - start)]
    if free.shape[1]:
        yield free
