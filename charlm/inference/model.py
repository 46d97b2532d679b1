"""The class `Model`: a trained model, for notebooks and for the programs evaluate and sample.

Letters in the names and shapes of arrays: N characters of a text, T characters of a window, B rows, V vocabulary, H hidden
units. If the symbols of the vocabulary are bytes, N and T are numbers of bytes of the text in UTF-8.
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
from charlm.data.batches import Batch
from charlm.data.corpora import Normalisation
from charlm.data.framing import Framing, start_ids
from charlm.data.ids import Encoded
from charlm.data.vocab import UNK, Vocab
from charlm.errors import UserError
from charlm.hardware import cache, devices
from charlm.inference import dynamic_run, inputs, pieces, restore, sample
from charlm.inference.dynamic import Evaluator, Settings
from charlm.inference.evaluate import evaluator
from charlm.inference.inputs import ScoredText
from charlm.inference.protocol import Protocol
from charlm.inference.windows import LONG, SHORT, windows
from charlm.models import stack
from charlm.rundir.directory import check_checkpoint_name
from charlm.rundir.run import Run


def load(
    workdir: str | os.PathLike, checkpoint: str | int = "best", dtype: str | None = None, trust_code: bool = False
) -> "Model":
    """The trained model of a run directory; see `charlm.load`."""
    check_checkpoint_name(str(checkpoint))
    inputs.check_choice("dtype", dtype, inputs.DTYPES)
    run = Run(workdir)
    cache.keep_compiled(cache.user_folder(run.config()))
    return Model(run, restore.load(workdir, str(checkpoint), dtype, trust_code=trust_code))


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Model:
    """A trained model: one checkpoint of a run.

    Every text is normalised like the run's corpus; see `normalise`. Texts are padded to a few lengths. The program for a
    length is compiled when it is needed for the first time, and is then kept. Later calls are therefore fast for a text of any
    length.

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
        """The vocabulary. `encode` turns text into ids, `decode` turns ids into text, `len` gives the number of symbols."""
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

        Often the text does not change. If it changes, its length may change too.
        """
        return Normalisation.of(self.config)(text)

    def logits(self, text: str) -> np.ndarray:
        """What the model predicts after each character, as unnormalised log-probabilities.

        Row i is computed from characters 0 to i and predicts character i + 1. The state is zero before the first character and
        is carried to the last character, whatever framing (stream, chunks, windows or documents) the model was trained with.
        A model of documents with `batch.start_symbol` reads `<eos>` before the first character.

        Returns:
          float32 (N, V), for the N characters of `normalise(text)`. Columns are ids of `vocab`.

        Raises:
          UserError: the text is empty, or has unknown symbols and the vocabulary has no `<unk>`.
        """
        rows = np.concatenate([np.asarray(logits_TV)[:count] for count, logits_TV, _ in self._read(text)])
        return rows[len(self._start) :]

    def surprisal(self, text: str) -> np.ndarray:
        """The nats of each character given the characters before it: -ln p(character | text before it).

        For most models, the first value is nan, because no character comes before the first character, and the model has not
        learned how texts begin. A model of documents with `batch.start_symbol` has learned how documents begin, so its first
        value is a number.

        The state is carried as in `logits`. Without a start symbol, the mean of the values except the first is therefore
        `score(text, framing="stream")["nats"]`. For a model trained on a stream, the mean is also `score(text)["nats"]`. For a
        model trained on documents, the mean differs from `score(text)["nats"]`, because `score` also scores the prediction that
        a document ends.

        Returns:
          float32 (N,), for the N characters of `normalise(text)`. A character outside the vocabulary counts as `<unk>`.

        Raises:
          UserError: in the same cases as `logits`.
        """
        next_nats = np.concatenate([np.asarray(nats_T)[:count] for count, _, nats_T in self._read(text)])
        return next_nats[:-1] if self._start else np.concatenate([np.full(1, np.nan, np.float32), next_nats[:-1]])

    def states(self, text: str) -> tuple:
        """The state of every layer after each character.

        As in `logits`, the state is zero before the first character and is carried to the last character.

        Returns:
          A tuple with one entry for each layer, from the first to the last. An entry is the state of the layer's cell. Its
          leaves are float32 (N, …) for the N characters of `normalise(text)`. The entry of an LSTM layer is (c_NH, h_NH).

        Raises:
          UserError: in the same cases as `logits`.
        """
        carry, parts = self._zero_carry(), []
        for count, ids_T1 in windows(self._encoded(text)):
            carry, states = self._step_window(self._step_weights, ids_T1[:-1], carry)
            parts.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count, 0], states))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[len(self._start) :], *parts)

    def score(self, text: str | Sequence[str], framing: str | None = None, length: int | None = None) -> dict[str, Any]:
        """Measures how well the model predicts a text. `scripts/evaluate.py --text` gives the same values.

        Args:
          text: a string. For a model of documents, the string is divided into documents as `corpus.documents` says; with a
            corpus from CSV, JSON Lines or TFDS, each line is a document. Such a model also accepts a sequence of strings, in
            which each string is a document.
          framing: `stream`, `chunks`, `windows` or `documents`. The default is the framing of the run's evaluation.
          length: the number of characters of a chunk or window. The default is `batch.length`.

        Returns:
          nats, bits, perplexity: the mean loss of a scored character in nats and in bits, and the perplexity per character.
          chars: the number of scored characters. An `<eos>` counts as a character.
          bytes: the number of bytes of the scored characters in UTF-8. An `<eos>` has no bytes.
          bits_per_byte: the bits of all scored characters, divided by `bytes`. It can be compared between models with different
            vocabularies. It is inf if no byte is scored.
          unknown: the number of scored characters that are outside the vocabulary and count as `<unk>`. This entry is
            absent if there are no such characters.
          step: the step of the checkpoint.
          seconds: the time that scoring took.
          protocol: how the text was read. Losses can be compared only if their protocols are the same.

        Raises:
          UserError: the text is too short for the framing, or has unknown symbols and the vocabulary has no `<unk>`; or
            `length` is not a positive integer, or is given without chunks or windows.
        """
        inputs.check_choice("framing", framing, FRAMINGS)
        scored = inputs.string_to_score(self.run, text)
        protocol = Protocol.of_run(self.config, framing, length=length)
        lengths = (SHORT, LONG, protocol.length) if protocol.framing.carries_state else ()
        return self.evaluate(scored, scored.encoded(self.vocab), protocol, lengths)

    def evaluate(
        self, scored: ScoredText, encoded: Encoded, protocol: Protocol, lengths: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Scores a text under a protocol and returns the same fields as `score`.

        Args:
          scored: the text.
          encoded: the text as ids.
          protocol: how the text is read.
          lengths: see `evaluator`.

        Raises:
          UserError: the text does not fit the protocol.
        """
        begin = time.perf_counter()
        mesh = devices.mesh(protocol.rows_at_once, devices.wanted(self.config))
        nats, chars = self._evaluator(mesh, lengths)(self.params, encoded, protocol)
        return {
            **measures.of_text(nats, chars, *protocol.counts(encoded, self.vocab)),
            "step": self.step,
            "seconds": round(time.perf_counter() - begin, 3),
            "protocol": protocol.named(scored.sha256, scored.split, chars),
        }

    def score_dynamically(
        self,
        text: str | Sequence[str],
        segment: int | None = None,
        learning_rate: float | None = None,
        decay: float | None = None,
        epsilon: float | None = None,
    ) -> dict[str, Any]:
        """Scores a text by dynamic evaluation: the weights learn from each segment of the text after it is scored.

        `scripts/evaluate.py --text --dynamic` gives the same values. The parameters of the model are not changed. The
        first call with a length of segments reads the training text, which takes as long as an epoch of training.

        Args:
          text: the text, as in `score`. It is read as a stream.
          segment: the number of characters of a segment.
          learning_rate, decay, epsilon: the rate of learning, the rate of decay to the trained weights (lambda), and the number
            that is added to the root mean squared gradients. None stands for the published value; see `dynamic.Settings`.

        Returns:
          The fields of `score`. The protocol also has `method`, which describes the settings.

        Raises:
          UserError: a setting is out of range, or a text is too short, or the corpus of the run can't be read.
          Failure: the learning rate is so high that the loss is not finite.
        """
        settings = Settings.of(segment, learning_rate, decay, epsilon)
        scored = inputs.string_to_score(self.run, text)
        return dynamic_run.evaluate(self.run, self.trained, self.dynamic, scored, settings)

    def score_lines(self, lines: Sequence[str]) -> list[dict[str, Any]]:
        """Scores each line alone, from the zero state. `scripts/evaluate.py --per_line` prints the same dicts.

        The first character of a line is scored only by a model of documents with `batch.start_symbol`. If the vocabulary has
        `<eos>`, the end of the line is scored.

        Args:
          lines: the lines without line breaks, normalised as `normalise` does.

        Returns:
          One dict for each line:
            line: the number of the line, from 1.
            text: the line.
            nats: the sum of the nats of the scored characters.
            chars: the number of scored characters.
            bits_per_char: the mean loss in bits, or None if no character is scored.
            unknown: the number of characters that the model reads as `<unk>`. Left out if there are none.

        Raises:
          UserError: a line has unknown symbols and the vocabulary has no `<unk>`.
        """
        if not lines:
            return []
        rows = min(Protocol.of_run(self.config).rows, len(lines))
        mesh = devices.mesh(rows, devices.wanted(self.config))
        found: list[dict[str, Any]] = [{}] * len(lines)
        ids = pieces.encoded(self.vocab, lines, "the text", self._start)
        for index, scores in pieces.score(self.trained.functions, self.params, ids, rows, mesh):
            nats, chars = float(scores.nats_M.sum(dtype=np.float64)), len(scores.nats_M)
            bits = measures.bits(nats / chars) if chars else None
            found[index] = {"line": index + 1, "text": lines[index], "nats": nats, "chars": chars, "bits_per_char": bits}
            if unknown := int((ids[index] == self.vocab.id_of(UNK)).sum()) if UNK in self.vocab.specials else 0:
                found[index]["unknown"] = unknown
        return found

    def score_chars(self, texts: Sequence[str], alternatives: int) -> list[tuple[np.ndarray, pieces.Scores]]:
        """The ids of each text, and the scores of its characters with the likeliest alternatives; see `pieces.Scores`.

        Each text is read from the zero state. If the vocabulary has `<eos>`, `<eos>` follows each text. The first character has
        a score only if the model reads a start symbol before it.

        Args:
          texts: the texts, normalised as `normalise` does.
          alternatives: the number of likeliest symbols to find for each character.

        Raises:
          UserError: a text has unknown symbols and the vocabulary has no `<unk>`.
        """
        ids = pieces.encoded(self.vocab, texts, "the text", self._start)
        scored = pieces.score(
            self.trained.functions, self.params, ids, Protocol.of_run(self.config).rows, alternatives=alternatives
        )
        by_index = dict(scored)
        return [(ids[index][len(self._start) :], by_index[index]) for index in range(len(ids))]

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
        stop: str | Sequence[str] = (),
    ) -> str | list[str]:
        """Draws text that continues a prompt. `scripts/sample.py` draws the same text with flags of the same names.

        If prompt, length, temperature or top_k is None, its value comes from the section `sample` of the run's config.

        Args:
          prompt: the text to continue. It is normalised like the run's corpus. It may be empty for a model of documents with
            `batch.start_symbol`, which then writes a whole document.
          length: the number of characters, or of bytes if the model reads bytes, to draw after the prompt. A model of documents
            stops at the end of a document. Drawn bytes that are not valid UTF-8 become U+FFFD.
          temperature: 0 always takes the most probable character; 1 leaves the model's probabilities unchanged.
          seed: the same seed gives the same text.
          num: None returns one text; a number returns a list of that many texts.
          top_k: draw from the k most probable characters; 0 draws from all characters.
          top_p: draw from the fewest characters whose probabilities sum to at least p.
          window: before each draw, the model starts from the zero state and reads the last `window` characters. With 0, the
            state is carried from character to character instead. The default is the window that the model was trained with.
          unknown: `error` refuses a prompt with symbols outside the vocabulary; `skip` drops such symbols.
          stop: a text, or several texts. A sample ends when the model has drawn one of these texts. The sample does not include
            this text.

        Returns:
          The prompt followed by the drawn text, or a list of such texts if `num` is given.

        Raises:
          UserError: an argument is wrong, the prompt is empty, or the prompt or `stop` has symbols outside the vocabulary.
        """
        inputs.check_sampling(length=length, temperature=temperature, top_k=top_k, top_p=top_p)
        inputs.check_sampling(num=num, window=window, seed=seed)
        inputs.check_choice("unknown", unknown, inputs.UNKNOWN)
        if prompt is None:
            prompt = inputs.own_prompt(self.run, self.config, self.vocab, unknown)
        else:
            prompt = inputs.typed_prompt(prompt, self.config, self.vocab, unknown)
        stops = inputs.stop_texts(stop, self.config, self.vocab)
        pieces = self.draw(prompt, length, temperature, seed, num=num or 1, top_k=top_k, top_p=top_p, window=window, stop=stops)
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
        stop: Sequence[str] = (),
        ended: dict[int, str | None] | None = None,
        carry: Any = None,
    ) -> Iterator[list[str]]:
        """Draws several texts after one prompt. Yields the texts piece by piece, without the prompt.

        The other arguments have the same meaning as in `sample`. The caller must check them first. If an argument is None, its
        value comes from the run's config.

        Args:
          cell: an index that changes the noise of the draws. A caller that draws for several pairs of prompt and temperature
            gives each pair its own index.
          stop: the stop texts, as `inputs.stop_texts` returns them; see `sample`.
          ended: an empty dict. For each text that ends early, its number in the list is added as a key. The value is the stop
            text that ended the text, or None if the end of a document ended it.
          carry: the state before the prompt. None is the zero state. A model with a window ignores it.
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
        texts_ended: dict[int, str | None] = {} if ended is None else ended
        prompt_N = self.encoded_from_start(prompt) if carry is None else self.vocab.encode(prompt)

        def pieces() -> Iterator[list[str]]:  # not yet cut at stop texts; ends early if all texts have ended
            decoders: list[Callable] = []
            for ids_BN in generate(self.params, prompt_N, num, length, temperature, key, carry):
                # If `num` is too large for the memory, `generate` has failed before here. The list alone could fill the memory.
                decoders = decoders or [self.vocab.decoder() for _ in range(num)]
                texts = []
                for row, ids_N in enumerate(ids_BN):
                    drawn_N = ids_N[:0] if row in texts_ended else sample.until_end(ids_N, self.vocab)
                    if len(drawn_N) < len(ids_N):
                        texts_ended.setdefault(row, None)
                    texts.append(decoders[row](drawn_N, row in texts_ended))
                yield texts
                if len(texts_ended) == num:
                    return
            rest = [decode((), True) for decode in decoders]  # bytes of a character that is not complete
            if any(rest):
                yield rest

        return sample.until_stop(pieces(), stop, texts_ended)

    def carry_after(self, ids_N: np.ndarray, carry: Any = None) -> Any:
        """The state after the model has read these ids, starting from the state `carry`. None is the zero state.

        N must be a multiple of SHORT, because a program is compiled for windows of SHORT ids only.
        """
        carry = self._zero_carry() if carry is None else carry
        for start in range(0, len(ids_N), SHORT):
            carry, _ = self._step_window(self._step_weights, ids_N[start : start + SHORT].astype(np.int32), carry)
        return carry

    def encoded_from_start(self, text: str) -> np.ndarray:
        """The ids that the model reads for a normalised text: the start symbol, if the model has one, and the characters."""
        ids_N = self.vocab.encode(text)
        return np.concatenate([np.array(self._start, ids_N.dtype), ids_N])

    @functools.cached_property
    def _start(self) -> list[int]:
        return start_ids(self.config, self.vocab)

    def _encoded(self, text: str) -> np.ndarray:
        """The ids of the text after it is normalised, as `encoded_from_start` gives them."""
        normalised = self.normalise(text)
        if not normalised:
            raise UserError(f"the text is empty: {inputs.EMPTY}")
        return self.encoded_from_start(normalised)

    def _read(self, text: str) -> Iterator[tuple[int, jax.Array, jax.Array]]:
        """Reads a text window by window. Yields the number of ids of a window, logits_TV and nats_T.

        nats_T holds the loss of each next id. T may be larger than the number of ids, because short windows are
        padded at the end.
        """
        carry = self._zero_carry()
        for count, ids_T1 in windows(self._encoded(text)):
            logits_TV, nats_T, carry = self._apply_window(self.params, ids_T1, carry)
            yield count, logits_TV, nats_T

    def _zero_carry(self) -> Any:
        """The zero state of one row. It has the same sharding as all later states, so that XLA compiles only one program."""
        placement = jax.tree.leaves(self.params)[0].sharding
        return jax.device_put(self.trained.functions.zero_carry(1), placement)

    @functools.cached_property
    def _apply_window(self) -> Callable:
        """A jitted function (params, ids_T1, carry) → (logits_TV, nats_T, carry).

        The function gets T + 1 ids. It reads the first T ids, and computes the loss of the id that follows each of them.
        """

        def window(params, ids_T1, carry):
            inputs_BT, targets_BT = ids_T1[None, :-1], ids_T1[None, 1:]
            batch = Batch(inputs_BT, targets_BT, jnp.ones(targets_BT.shape), jnp.zeros(1, bool))
            logits_BTV, carry = self.trained.functions.apply(params, batch, carry)
            log_p_TV = jax.nn.log_softmax(logits_BTV[0], axis=-1)
            return logits_BTV[0], -jnp.take_along_axis(log_p_TV, targets_BT[0, :, None], axis=-1)[:, 0], carry

        return jax.jit(window)

    @functools.cached_property
    def _step_window(self) -> Callable:
        """A jitted function (weights, ids_T, carry) → (carry, states). It reads T ids and stacks the states after each id."""

        def window(weights, ids_T, carry):
            def step(carry, id_):
                _, carry = self.trained.functions.step(weights, id_[None], carry)
                return carry, carry

            return jax.lax.scan(step, carry, ids_T)

        return jax.jit(window)

    @functools.cached_property
    def _step_weights(self) -> Any:
        """The parameters in the layout that `functions.step` needs for one row."""
        return jax.jit(self.trained.functions.stepwise, static_argnums=1)(self.params, 1)

    @functools.cached_property
    def dynamic(self) -> Evaluator:
        """The programs of dynamic evaluation."""
        return Evaluator(self.trained.functions)

    @functools.cached_property
    def _evaluator(self) -> Callable[[Mesh, tuple[int, ...]], Callable]:
        return functools.cache(functools.partial(evaluator, self.trained.functions))

    @functools.cached_property
    def _sampler(self) -> Callable[[int, float, int, Mesh], Callable]:
        return functools.cache(functools.partial(sample.sampler, self.trained.functions, self.vocab))


def joined(pieces: Iterator[list[str]], num: int) -> list[str]:
    """The `num` texts that `Model.draw` yields piece by piece."""
    return ["".join(row) for row in zip(*pieces, strict=True)] or [""] * num
