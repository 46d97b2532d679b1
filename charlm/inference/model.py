"""`Model`: a trained model in Python, for notebooks and for the programs evaluate and sample.

Letters: N characters of a text, T of a window, B rows, V vocabulary.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from charlm import measures
from charlm.config.keys import FRAMINGS, defaults
from charlm.data.batches import Batch, Encoded, Framing
from charlm.data.corpora import Normalisation
from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.hardware import cache, devices
from charlm.inference import inputs, restore, sample
from charlm.inference.evaluate import evaluator
from charlm.inference.inputs import ScoredText
from charlm.inference.protocol import Protocol
from charlm.models import stack
from charlm.rundir.run import Run, check_checkpoint_name

# Characters of a window. A text is read in long windows and its rest in short ones, so only two lengths are compiled.
SHORT, LONG = 64, 1024


def load(workdir: str | os.PathLike, checkpoint: str | int = "best", dtype: str | None = None) -> "Model":
    """The trained model of a run directory; see `charlm.load`."""
    check_checkpoint_name(str(checkpoint))
    inputs.check_choice("dtype", dtype, inputs.DTYPES)
    run = Run(workdir)
    cache.keep_compiled(cache.user_folder(run.config()))
    return Model(run, restore.load(workdir, str(checkpoint), dtype))


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Model:
    """A trained model: one checkpoint of a run.

    Every text is normalised as the run's corpus was, see `normalise`. Texts are padded to a few lengths, and compiled programs
    are kept, so a second call is fast whatever the length of its text.

    Attributes:
      run: the run directory.
      trained: the checkpoint, with the config and the vocabulary of the run.
    """

    run: Run
    trained: restore.Trained

    @property
    def params(self) -> Any:
        """The parameters, a tree of float32 arrays."""
        return self.trained.params

    @property
    def vocab(self) -> Vocab:
        """The vocabulary: `encode` turns text into ids, `decode` ids into text, `len` counts its symbols."""
        return self.trained.vocab

    @property
    def config(self) -> ConfigDict:
        """The config of the run, such as `model.config.model.hidden`."""
        return self.trained.config

    @property
    def step(self) -> int:
        """The step at which the checkpoint was saved."""
        return self.trained.step

    def __repr__(self) -> str:
        parameters = stack.parameter_count(self.params)
        return f"<charlm model of {self.run.workdir}, step {self.step:,}, {parameters:,} parameters>"

    def normalise(self, text: str) -> str:
        """The text as the model reads it, after the run's `corpus.newlines`, `corpus.lowercase` and `corpus.keep` are applied.

        Often this is the text itself; otherwise its length may change.
        """
        return Normalisation.of(self.config)(text)

    def logits(self, text: str) -> np.ndarray:
        """What the model predicts after each character, as unnormalised log-probabilities.

        Row i has read the characters up to and including i, so it predicts character i + 1. The state is zero before the first
        character and is carried to the last, whatever framing the model was trained with.

        Returns:
          float32 (N, V), for the N characters of `normalise(text)`. Columns are ids of `vocab`.

        Raises:
          UserError: the text is empty, or has symbols outside a vocabulary without `<unk>`.
        """
        return np.concatenate([np.asarray(logits_TV)[:count] for count, logits_TV, _ in self._read(text)])

    def surprisal(self, text: str) -> np.ndarray:
        """Nats of each character given the characters before it: -ln p(character | text before it).

        The first is nan: no character comes before it, and the model has not learned how texts begin. The state is carried as
        in `logits`. So the mean of the others is `score(text, framing="stream")["nats"]`; for a model trained on a stream it is
        `score(text)["nats"]`. A model of documents differs: `score` also counts the end of each document.

        Returns:
          float32 (N,), for the N characters of `normalise(text)`. A character outside the vocabulary counts as `<unk>`.

        Raises:
          UserError: as `logits` does.
        """
        next_nats = np.concatenate([np.asarray(nats_T)[:count] for count, _, nats_T in self._read(text)])
        return np.concatenate([np.full(1, np.nan, np.float32), next_nats[:-1]])

    def states(self, text: str) -> tuple:
        """The state of every layer after each character.

        The state is zero before the first character and is carried to the last, as in `logits`.

        Returns:
          One entry for each layer, from the first to the last: the state of its cell, with leaves float32 (N, …) for the N
          characters of `normalise(text)`. An LSTM layer has (c_NH, h_NH).

        Raises:
          UserError: as `logits` does.
        """
        carry, windows = self._zero_carry(), []
        for count, ids_T1 in _windows(self._encoded(text)):
            carry, states = self._step_window(self._step_weights, ids_T1[:-1], carry)
            windows.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count, 0], states))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *windows)

    def score(self, text: str | Sequence[str], framing: str | None = None) -> dict[str, Any]:
        """How well the model predicts a text, as `scripts/evaluate.py --text` measures it.

        Args:
          text: a string. For a model of documents each of its lines is a document; a sequence of strings has one document each.
          framing: `stream`, `chunks`, `windows` or `documents`; by default that of the run.

        Returns:
          nats, bits, perplexity: per scored character.
          chars: the number of scored characters.
          step: the step of the checkpoint.
          seconds: the time it took.
          protocol: how the text was read. Compare only figures with the same protocol.

        Raises:
          UserError: the text is too short for the framing, or has symbols outside a vocabulary without `<unk>`.
        """
        inputs.check_choice("framing", framing, FRAMINGS)
        scored = inputs.string_to_score(self.run, text)
        protocol = Protocol.of_run(self.config, framing)
        lengths = (SHORT, LONG, protocol.length) if protocol.framing.carries_state else ()
        return self.evaluate(scored, scored.encoded(self.vocab), protocol, lengths)

    def evaluate(
        self, scored: ScoredText, encoded: Encoded, protocol: Protocol, lengths: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Scores a text under a protocol; see `score` for the result, and `evaluator` for the lengths.

        Args:
          encoded: the same text as ids.

        Raises:
          UserError: the text does not fit the protocol.
        """
        begin = time.perf_counter()
        mesh = devices.mesh(protocol.rows_at_once, devices.wanted(self.config))
        nats, chars = self._evaluator(mesh, lengths)(self.params, encoded, protocol)
        return {
            **measures.of_nats(nats / chars),
            "chars": chars,
            "step": self.step,
            "seconds": round(time.perf_counter() - begin, 3),
            "protocol": protocol.named(scored.sha256, scored.split, chars),
        }

    def sample(
        self,
        prompt: str | None = None,
        length: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        *,
        num: int | None = None,
        top_k: int | None = None,
        top_p: float = 1.0,
        window: int | None = None,
        unknown: str = "error",
    ) -> str | list[str]:
        """Text that continues a prompt: the same as `scripts/sample.py` draws with flags of the same names.

        Arguments left out, including the prompt, come from the section `sample` of the run's config.

        Args:
          prompt: normalised as the run's corpus was.
          length: characters to draw, not counting the prompt. A model of documents stops at the end of a document.
          temperature: 0 always takes the most probable character; 1 leaves the model's probabilities unchanged.
          seed: the same seed gives the same text.
          num: None returns one text; a number returns a list of that many texts.
          top_k: draw from the k most probable characters; 0: from all.
          top_p: draw from the fewest characters whose probabilities sum to at least p.
          window: each character is drawn from the last `window` characters, read from the zero state; 0: from all characters
            before it. By default as in training.
          unknown: `error`, or `skip` to drop symbols of the prompt that are outside the vocabulary.

        Returns:
          The prompt and what was drawn after it; a list of such texts if `num` is given.

        Raises:
          UserError: an argument is wrong, or the prompt is empty or has symbols outside the vocabulary.
        """
        inputs.check_sampling(length=length, temperature=temperature, top_k=top_k, top_p=top_p)
        inputs.check_sampling(num=num, window=window, seed=seed)
        inputs.check_choice("unknown", unknown, inputs.UNKNOWN)
        if prompt is None:
            prompt = inputs.own_prompt(self.run, self.config, self.vocab, unknown)
        else:
            prompt = inputs.typed_prompt(prompt, self.config, self.vocab, unknown)
        pieces = self.draw(prompt, length, temperature, seed, num=num or 1, top_k=top_k, top_p=top_p, window=window)
        texts = [prompt + drawn for drawn in joined(pieces, num or 1)]
        return texts[0] if num is None else texts

    def draw(
        self,
        prompt: str,
        length: int | None,
        temperature: float | None,
        seed: int,
        *,
        num: int,
        top_k: int | None,
        top_p: float,
        window: int | None,
        cell: int = 0,
    ) -> Iterator[list[str]]:
        """Draws several texts after one prompt, and yields them piece by piece as they are drawn, without the prompt.

        Arguments are those of `sample`, already checked; None means the value of the run's config.

        Args:
          cell: the index of this pair of prompt and temperature in a grid of such pairs. Each pair draws with its own noise.
        """
        config = self.config.sample
        length = (config.length or defaults().sample.length) if length is None else length
        temperature = config.temperature if temperature is None else temperature
        top_k = config.top_k if top_k is None else top_k
        window = Framing.of(self.config).window if window is None else window
        weights = stack.layer_operations(self.config)
        rows = devices.rows_to_share(self.config, weights, num, self.config.model.dtype)
        generate = self._sampler(top_k, top_p, window, devices.mesh(rows, devices.wanted(self.config)))
        key = jax.random.fold_in(jax.random.key(seed), cell)
        ended: set[int] = set()  # rows that have drawn the end of their document
        for ids_BN in generate(self.params, self.vocab.encode(prompt), num, length, temperature, key):
            texts = []
            for row, ids_N in enumerate(ids_BN):
                drawn_N = ids_N[:0] if row in ended else sample.until_end(ids_N, self.vocab)
                if len(drawn_N) < len(ids_N):
                    ended.add(row)
                texts.append(self.vocab.decode(drawn_N))
            yield texts
            if len(ended) == num:
                return

    def _encoded(self, text: str) -> np.ndarray:
        """(N,) ids of the normalised text."""
        normalised = self.normalise(text)
        if not normalised:
            raise UserError(f"the text is empty: {inputs.EMPTY}")
        return self.vocab.encode(normalised)

    def _read(self, text: str) -> Iterator[tuple[int, jax.Array, jax.Array]]:
        """For each window: its number of characters, logits_TV, and the nats_T of each next character.

        T may be more than the number of characters; the rest is padding.
        """
        carry = self._zero_carry()
        for count, ids_T1 in _windows(self._encoded(text)):
            logits_TV, nats_T, carry = self._apply_window(self.params, ids_T1, carry)
            yield count, logits_TV, nats_T

    def _zero_carry(self) -> Any:
        """The zero state of one row, on the same device as all later states. Otherwise XLA would compile a second program."""
        placement = jax.tree.leaves(self.params)[0].sharding
        return jax.device_put(self.trained.functions.zero_carry(1), placement)

    @functools.cached_property
    def _apply_window(self) -> Callable:
        """A jitted function (params, ids_T1, carry) → (logits_TV, nats_T, carry): reads T ids and scores the id after each."""

        def window(params, ids_T1, carry):
            inputs_BT, targets_BT = ids_T1[None, :-1], ids_T1[None, 1:]
            batch = Batch(inputs_BT, targets_BT, jnp.ones(targets_BT.shape), jnp.zeros(1, bool))
            logits_BTV, carry = self.trained.functions.apply(params, batch, carry)
            log_p_TV = jax.nn.log_softmax(logits_BTV[0], axis=-1)
            return logits_BTV[0], -jnp.take_along_axis(log_p_TV, targets_BT[0, :, None], axis=-1)[:, 0], carry

        return jax.jit(window)

    @functools.cached_property
    def _step_window(self) -> Callable:
        """A jitted function (weights, ids_T, carry) → (carry, states): reads T ids; `states` stacks the state after each id."""

        def window(weights, ids_T, carry):
            def step(carry, id_):
                _, carry = self.trained.functions.step(weights, id_[None], carry)
                return carry, carry

            return jax.lax.scan(step, carry, ids_T)

        return jax.jit(window)

    @functools.cached_property
    def _step_weights(self) -> Any:
        """The parameters as `functions.step` reads them for one row."""
        return jax.jit(self.trained.functions.stepwise, static_argnums=1)(self.params, 1)

    @functools.cached_property
    def _evaluator(self) -> Callable[[Mesh, tuple[int, ...]], Callable]:
        return functools.cache(functools.partial(evaluator, self.trained.functions))

    @functools.cached_property
    def _sampler(self) -> Callable[[int, float, int, Mesh], Callable]:
        return functools.cache(functools.partial(sample.sampler, self.trained.functions, self.vocab))


def joined(pieces: Iterator[list[str]], num: int) -> list[str]:
    """The `num` texts that `Model.draw` yields piece by piece."""
    return ["".join(row) for row in zip(*pieces, strict=True)] or [""] * num


def _windows(ids_N: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Cuts the ids into long windows and then short ones. Yields the number of ids of a window, and ids_T1, int32.

    ids_T1 also has the id after the window. After the end of the text it is filled with zeros.
    """
    start, total = 0, len(ids_N)
    while start < total:
        length = LONG if total - start >= LONG else SHORT
        ids_T1 = np.zeros(length + 1, np.int32)
        piece = ids_N[start : start + length + 1]
        ids_T1[: len(piece)] = piece
        yield min(length, total - start), ids_T1
        start += length
