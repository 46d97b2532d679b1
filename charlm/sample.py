"""Text from a model: a jitted loop that carries the LSTM state, or slides a window over its own output, and the rules by which
it picks the next character.

Letters: B rows, N steps of a chunk, P symbols of the prompt, V vocabulary, W symbols of a window.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charlm.batches import Batch
from charlm.model import Functions
from charlm.vocab import EOS, Vocab

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


def sampler(model: Functions, vocab: Vocab, top_k: int = 0, top_p: float = 1.0, window: int = 0) -> Callable:
    """A function (params, prompt_ids, rows, length, temperature, key) → iterator of (B, n) arrays of ids, prompt excluded.

    The prompt is fed through the same loop, so that one compiled program serves prompts of every length and every temperature.
    What a row draws at a position depends on the key, the row and the position alone: a longer sample begins like a shorter
    one. Ids that no text has are never drawn; drawing ends early once every row has had its `<eos>`.

    Args:
      window: 0 carries the state from character to character. Else each character is drawn after the last `window` ones, read
        from the zero state, as the Keras and Axon notebooks do with models trained on such windows.
    """
    allowed_V = np.ones(len(vocab), bool)
    allowed_V[list(vocab.never_drawn())] = False
    end = vocab.id_of(EOS)

    def drawn(logits_BV, noise_BV, temperature):
        logits_BV = jnp.where(jnp.asarray(allowed_V)[None, :], logits_BV, -jnp.inf)
        return pick(logits_BV, noise_BV, Decoding(temperature, top_k, top_p)).astype(jnp.int32)

    @functools.partial(jax.jit, donate_argnums=1)
    def carried_chunk(params, state, forced_NB, temperature, key):
        def step(state, at):
            carry, ids_B = state
            forced_B, noise_BV = at
            logits_BV, carry = _one_step(model, params, ids_B, jnp.zeros_like(ids_B, bool), carry)
            ids_B = jnp.where(forced_B >= 0, forced_B, drawn(logits_BV, noise_BV, temperature))
            return (carry, ids_B), ids_B

        return jax.lax.scan(step, state, (forced_NB, _noise(key, forced_NB.shape[1], len(vocab))))

    @functools.partial(jax.jit, donate_argnums=1)
    def windowed_chunk(params, state, forced_NB, temperature, key):
        def step(state, noise_BV):
            ids_WB, missing = state
            rows = ids_WB.shape[1]

            def within(state, at):
                ids_B, position = at
                logits_BV, carry = _one_step(model, params, ids_B, jnp.full(rows, position <= missing), state[0])
                return (carry, logits_BV), None

            nothing = (model.zero_carry(rows), jnp.zeros((rows, len(vocab))))
            (_, logits_BV), _ = jax.lax.scan(within, nothing, (ids_WB, jnp.arange(window)))
            ids_B = drawn(logits_BV, noise_BV, temperature)
            return (jnp.concatenate([ids_WB[1:], ids_B[None]]), jnp.maximum(missing - 1, 0)), ids_B

        return jax.lax.scan(step, state, _noise(key, forced_NB.shape[1], len(vocab)))

    def generate(params, prompt_ids: np.ndarray, rows: int, length: int, temperature: float, key) -> Iterator[np.ndarray]:
        prompt_ids = np.asarray(prompt_ids, np.int32)
        if window:
            chunk, given, missing = windowed_chunk, 0, max(0, window - len(prompt_ids))
            seen_W = np.concatenate([np.zeros(missing, np.int32), prompt_ids[-window:]])
            state = (jnp.repeat(jnp.asarray(seen_W)[:, None], rows, axis=1), jnp.asarray(missing))
        else:
            chunk, given = carried_chunk, len(prompt_ids) - 1  # steps whose outcome the prompt dictates
            state = (model.zero_carry(rows), jnp.full(rows, prompt_ids[0], jnp.int32))
        steps = given + length if length else 0
        ended_B = np.zeros(rows, bool)
        ahead = None  # what the chunk before drew: it is fetched while this one runs
        for start in range(0, steps, CHUNK):
            forced_N = np.full(CHUNK, -1, np.int32)
            rest_of_prompt = prompt_ids[1 + start : 1 + start + CHUNK] if not window else ()
            forced_N[: len(rest_of_prompt)] = rest_of_prompt
            forced_NB = np.repeat(forced_N[:, None], rows, axis=1)
            chunk_key = jax.random.fold_in(key, start // CHUNK)
            state, ids_NB = chunk(params, state, forced_NB, jnp.float32(temperature), chunk_key)
            if ahead is not None:
                yield from _free(*ahead, given, steps)
                if end is not None:
                    ended_B |= (np.asarray(ahead[1]) == end).any(0)
                    if ended_B.all():
                        return
            ahead = (start, ids_NB)
        if ahead is not None:
            yield from _free(*ahead, given, steps)

    return generate


def until_end(ids_N: np.ndarray, vocab: Vocab) -> np.ndarray:
    """What a row drew before its `<eos>`; all of it where there is none."""
    ends = np.flatnonzero(ids_N == vocab.id_of(EOS)) if EOS in vocab.specials else ()
    return ids_N[: ends[0]] if len(ends) else ids_N


def pick(logits_BV, noise_BV, decoding: Decoding):
    """(B,) ids drawn from logits by the Gumbel-max trick, after temperature, top-k and top-p.

    Args:
      logits_BV: float32, -inf where a symbol is not allowed.
      noise_BV: standard Gumbel noise.
    """
    most_probable_B = jnp.argmax(logits_BV, axis=-1)
    temperature = jnp.where(decoding.temperature > 0, decoding.temperature, 1.0)
    logits_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / temperature
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
    return jnp.where(decoding.temperature > 0, jnp.argmax(logits_BV + noise_BV, axis=-1), most_probable_B)


def _one_step(model: Functions, params, ids_B, reset_B, carry):
    """(logits_BV, carry) after one more character."""
    ids_B1 = ids_B[:, None]
    logits_BSV, carry = model.apply(params, Batch(ids_B1, ids_B1, jnp.ones(ids_B1.shape), reset_B), carry)
    return logits_BSV[:, 0], carry


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
