"""Draws text from a model: a jitted loop, and the rules for picking each next character.

For each next character, the loop either continues from the model's state, or reads a window of the last characters again.

A chunk is the block of `CHUNK` steps that one call of the loop makes.

Shape letters: B rows, N steps of a chunk, V vocabulary, W symbols of a window.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm.data.vocab import EOS, Vocab
from charlm.models.stack import Functions, keep_rows

CHUNK = 64  # the number of steps in one call of the jitted loop


class Decoding(NamedTuple):
    """The rules for picking the next character. They are applied in the order of the attributes.

    Attributes:
      temperature: divides the logits; 0 always picks the most probable character.
      top_k: keep only the k most probable characters; 0 keeps all.
      top_p: keep the fewest of the remaining characters whose probabilities sum to at least p (Holtzman et al. 2020); 1 keeps
        all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def sampler(
    model: Functions, vocab: Vocab, top_k: int = 0, top_p: float = 1.0, window: int = 0, mesh: Mesh | None = None
) -> Callable:
    """Makes a function (params, prompt_ids, rows, length, temperature, key, carry) → iterator of (B, n) arrays of drawn ids.

    The arrays do not include the prompt, which needs at least one id. The loop also reads the prompt, so one compiled program
    handles every prompt length and every temperature. The random noise of a draw depends only on the key, the row and the
    position. A longer sample therefore begins with the characters of a shorter sample from the same key. `<pad>` and `<unk>`
    are never drawn. Drawing ends when every row has drawn `<eos>`, even if the rows are then shorter than `length`.

    `carry` is the state before the prompt, or None for the zero state. A sampler with a window ignores `carry`.

    Args:
      model: the model as pure functions.
      vocab: the vocabulary of the model.
      top_k: see `Decoding`.
      top_p: see `Decoding`.
      window: 0 carries the state from character to character. Otherwise, before each draw, the model reads the last `window`
        characters from the zero state. The notebooks that the recipes `sonnets_keras` and `alice_axon` follow sample in this
        way, because their models are trained on windows.
      mesh: the devices among which the rows are divided. The number of rows must be a multiple of the number of devices. None
        uses the default device.
    """
    allowed_V = np.ones(len(vocab), bool)
    allowed_V[list(vocab.never_drawn())] = False
    end = vocab.id_of(EOS)

    def drawn(logits_BV, noise_BV, temperature):
        logits_BV = jnp.where(jnp.asarray(allowed_V)[None, :], logits_BV, -jnp.inf)
        return pick(logits_BV, noise_BV, Decoding(temperature, top_k, top_p)).astype(jnp.int32)

    def carried_chunk(weights, state, forced_BN, row_B, temperature, key, number):
        def step(state, at):
            carry, ids_B = state
            forced_B, noise_BV = at
            logits_BV, carry = model.step(weights, ids_B, carry)
            ids_B = jnp.where(forced_B >= 0, forced_B, drawn(logits_BV, noise_BV, temperature))
            return (carry, ids_B), ids_B

        state, ids_NB = jax.lax.scan(step, state, (forced_BN.T, _noise(key, number, row_B, len(vocab))))
        return state, ids_NB.T

    def windowed_chunk(weights, state, forced_BN, row_B, temperature, key, number):
        del forced_BN  # the window already holds the prompt

        def step(state, noise_BV):
            ids_BW, missing_B = state

            def within(state, at):
                ids_B, position = at
                # The state stays zero at the empty positions before the prompt.
                carry = keep_rows(state[0], position > missing_B)
                logits_BV, carry = model.step(weights, ids_B, carry)
                return (carry, logits_BV), None

            start = (model.zero_carry(len(row_B)), jnp.zeros((len(row_B), len(vocab))))
            (_, logits_BV), _ = jax.lax.scan(within, start, (ids_BW.T, jnp.arange(window)))
            ids_B = drawn(logits_BV, noise_BV, temperature)
            return (jnp.concatenate([ids_BW[:, 1:], ids_B[:, None]], axis=1), jnp.maximum(missing_B - 1, 0)), ids_B

        state, ids_NB = jax.lax.scan(step, state, _noise(key, number, row_B, len(vocab)))
        return state, ids_NB.T

    chunk, place, output_sharding = windowed_chunk if window else carried_chunk, lambda weights: weights, None
    if mesh is not None:
        shared, of_rows = PartitionSpec(), PartitionSpec(mesh.axis_names[0])
        in_specs, out_specs = (shared, of_rows, of_rows, of_rows, shared, shared, shared), (of_rows, of_rows)
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        place = functools.partial(jax.device_put, device=NamedSharding(mesh, shared))
        output_sharding = NamedSharding(mesh, of_rows)
    chunk, stepwise = jax.jit(chunk, donate_argnums=1), jax.jit(model.stepwise, static_argnums=1)

    def generate(
        params: Any, prompt_ids: np.ndarray, rows: int, length: int, temperature: float, key: jax.Array, carry: Any = None
    ) -> Iterator[np.ndarray]:
        rows_each = rows // mesh.size if mesh is not None else rows  # the rows of one device
        prompt_ids, weights = prompt_ids.astype(np.int32), place(stepwise(params, rows_each))
        if window:
            given, missing = 0, max(0, window - len(prompt_ids))
            seen_W = np.concatenate([np.zeros(missing, np.int32), prompt_ids[-window:]])
            state = (np.repeat(seen_W[None, :], rows, axis=0), np.full(rows, missing, np.int32))
        else:
            given = len(prompt_ids) - 1  # the number of steps whose next character comes from the prompt
            # The first chunk donates its state, so it must not get the caller's own arrays.
            carry = model.zero_carry(rows) if carry is None else jax.tree.map(jnp.copy, carry)
            state = (carry, np.full(rows, prompt_ids[0], np.int32))
        # A chunk returns a state that is placed on certain devices. The first state is placed on the devices in the same way.
        # Otherwise the program would be compiled twice: for the first chunk, and for all other chunks.
        state = jax.device_put(state, output_sharding or jax.tree.leaves(weights)[0].sharding)
        steps = given + length if length else 0
        ended_B = np.zeros(rows, bool)
        previous: tuple[int, jax.Array] | None = None  # the ids of this chunk are copied to the host while the next chunk runs
        for start in range(0, steps, CHUNK):
            forced_BN = np.full((rows, CHUNK), -1, np.int32)
            if not window:
                rest_of_prompt = prompt_ids[1 + start : 1 + start + CHUNK]
                forced_BN[:, : len(rest_of_prompt)] = rest_of_prompt
            number = np.int32(start // CHUNK)
            state, ids_BN = chunk(weights, state, forced_BN, np.arange(rows), np.float32(temperature), key, number)
            if previous is not None:
                yield from _without_prompt(*previous, given, steps)
                if end is not None:
                    ended_B |= (np.asarray(previous[1]) == end).any(1)
                    if ended_B.all():
                        return
            previous = (start, ids_BN)
        if previous is not None:
            yield from _without_prompt(*previous, given, steps)

    return generate


def until_end(ids_N: np.ndarray, vocab: Vocab) -> np.ndarray:
    """The ids before the first `<eos>`, or all ids if they contain no `<eos>`."""
    if (end := vocab.id_of(EOS)) is None:
        return ids_N
    ends = np.flatnonzero(ids_N == end)
    return ids_N[: ends[0]] if len(ends) else ids_N


def until_stop(pieces: Iterator[list[str]], stop: Sequence[str], ended: dict[int, str | None]) -> Iterator[list[str]]:
    """Ends each text before the first of the stop texts. Yields the texts piece by piece.

    The first stop text is the stop text whose last character is drawn first. If two stop texts end at the same position, the
    longer stop text is used. The end of a piece is kept back while it could be the beginning of a stop text. The result
    therefore does not depend on how a text is divided into pieces.

    Args:
      pieces: lists with one piece of each text.
      stop: the stop texts. None of them is empty.
      ended: text number → the stop text that ended it. This function adds entries. The caller may read this dict between two
        pieces, and end `pieces` when all texts have ended. The value None says that the text ended without a stop text.
    """
    held: list[str] = []
    for texts in pieces:
        held = held or [""] * len(texts)
        shown = []
        for row, text in enumerate(texts):
            text = "" if ended.get(row) is not None else held[row] + text
            matches = [(start + len(each), start, each) for each in stop if (start := text.find(each)) >= 0]
            if matches:
                _, keep, ended[row] = min(matches)
                held[row] = ""
            else:
                keep = len(text) - max((_overlap(text, each) for each in stop), default=0)
                held[row] = text[keep:]
            shown.append(text[:keep])
        yield shown
    if any(held):
        yield held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of the text that is also a prefix of the stop text, but not the whole stop text."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def pick(logits_BV: jax.Array, noise_BV: jax.Array, decoding: Decoding) -> jax.Array:
    """(B,) ids drawn by the Gumbel-max trick. Before the draw, temperature, top-k and top-p are applied to the logits.

    Args:
      logits_BV: float32, -inf for symbols that are not allowed.
      noise_BV: standard Gumbel noise.
    """
    greedy = decoding.temperature == 0
    logits_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / jnp.where(greedy, 1.0, decoding.temperature)
    if 0 < decoding.top_k < logits_BV.shape[-1]:
        smallest_B1 = jax.lax.top_k(logits_BV, decoding.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= smallest_B1, logits_BV, -jnp.inf)
    if decoding.top_p < 1:
        descending_BV = -jnp.sort(-logits_BV, axis=-1)
        probabilities_BV = jax.nn.softmax(descending_BV, axis=-1)
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        # The most probable character is always kept, even if top_p is so small that it becomes 0 in float32.
        kept_BV = ((before_BV < decoding.top_p) | (before_BV == 0)) & jnp.isfinite(descending_BV)
        smallest_B1 = jnp.min(jnp.where(kept_BV, descending_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= smallest_B1, logits_BV, -jnp.inf)
    return jnp.argmax(logits_BV + jnp.where(greedy, 0.0, noise_BV), axis=-1)


def _noise(key: jax.Array, number: jax.Array, row_B: jax.Array, vocab_size: int) -> jax.Array:
    """(N, B, V) standard Gumbel noise for the chunk with this number, counted from 0. Each row has its own key."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, number), row_B)
    return jax.vmap(lambda row_key: jax.random.gumbel(row_key, (CHUNK, vocab_size)), out_axes=1)(keys)


def _without_prompt(start: int, ids_BN: jax.Array, given: int, steps: int) -> Iterator[np.ndarray]:
    """Yields the (B, n) ids of a chunk that are part of the sample. Yields nothing if n is 0.

    Args:
      start: the number of the chunk's first step.
      given: the number of steps whose next character comes from the prompt.
      steps: the number of steps of the whole sample, prompt included. The last chunk may have more steps than the sample needs.
    """
    free_BN = np.asarray(ids_BN)[:, max(0, given - start) : max(0, steps - start)]
    if free_BN.shape[1]:
        yield free_BN
