"""Makes from a config what a training needs: the data, the functions of the model, and numbers such as the number of steps.

This module writes no files.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from charlm import progress
from charlm.config import packs
from charlm.data import batches, corpora
from charlm.data.framing import Framing, cut_in_words, start_ids
from charlm.data.ids import Encoded, encode
from charlm.data.vocab import ADVICE, PAD, Vocab
from charlm.errors import UserError
from charlm.hardware import accelerators, devices
from charlm.inference import sample
from charlm.inference.protocol import Counts, Protocol
from charlm.models import blocks, kernels, regularisers, stack
from charlm.models.cells import interface
from charlm.training import averaging, optim
from charlm.training.averaging import Averaging

LISTED = 20  # the maximum number of odd symbols that are listed
MOST_SHOWN = 20  # the maximum number of evaluations that a run with short epochs prints
# The numbers of steps that one call may make, largest first. The largest number is used that keeps the operations of a call at
# or below MAX_OPERATIONS.
STEPS_PER_CALL = (10, 5, 2)
# The largest allowed number of floating-point operations in a call of several steps. A call with this many operations takes 3 s
# on two cores. During a call, the training can't respond to a signal.
MAX_OPERATIONS = 1e12


@dataclasses.dataclass(frozen=True)
class Setup:
    """The objects of a training. They do not change while the training runs.

    Attributes:
      encoded: the splits as ids.
      mesh: the devices among which the rows of a batch are divided.
      kernel: the program that runs the layers; see `charlm.models.kernels`.
      rates: (step, count) → the schedule's learning rates of `count` steps, starting at `step`: float32 (count,).
      averaging: how the parameters are averaged; None: they are not averaged.
      shown_every: the minimum number of steps between two printed evaluations. All evaluations are written to metrics.jsonl.
      best_by: the loss that chooses the best checkpoint, `validation` or `train`.
      draw_sample: (params, step, seed) → text; None if `sample.length` is 0.
    """

    vocab: Vocab
    provenance: dict
    encoded: dict[str, Encoded]
    batches: batches.Batches
    functions: stack.Functions
    mesh: Mesh
    kernel: str
    total_steps: int
    steps_per_call: int
    rates: Callable[[int, int], np.ndarray]
    optimizer: optax.GradientTransformation
    averaging: Averaging | None
    log_every: int
    eval_every: int
    shown_every: int
    checkpoint_every: int
    patience: int
    halvings: int
    best_by: str
    protocol: Protocol
    draw_sample: Callable[[Any, int, int], str] | None
    seed: int

    @property
    def pad(self) -> int | None:
        """The id of `<pad>`, or None if the corpus has no documents."""
        return self.vocab.id_of(PAD)

    @functools.cached_property
    def abstract_params(self) -> Any:
        """The names, shapes and types of the parameters."""
        return jax.eval_shape(lambda: self.functions.init(jax.random.key(0)))

    @functools.cached_property
    def validation_counts(self) -> Counts:
        """How many bytes and `<unk>` an evaluation scores in the validation split.

        All evaluations of a run score the same characters.
        """
        return self.protocol.counts(self.encoded["validation"], self.vocab)


def set_up(config: ConfigDict, trials: int = 1, like: Setup | None = None) -> Setup:
    """Loads the corpus, and makes the model and the optimiser. `own.load` must have loaded the cells in files of the user.

    Args:
      trials: the number of trials in the pack of this training; 1 if it trains alone. The trials of a pack share the devices,
        so each of them uses one device.
      like: the setup of another trial of the same pack. The trials of a pack have the same text, and the same model except for
        its initial parameters, so the new setup uses these parts of `like`.

    Raises:
      UserError: the corpus can't be used or does not match the config, or a user's cell does not have the interface.
    """
    if trials > 1:
        config = packs.of_pack(config)
    seed, best_by, patience = config.seed, config.train.best, config.train.patience
    framing = Framing.of(config)
    interface.check(config)
    if like is None:
        corpus = corpora.load(config)
        vocab, provenance = corpora.vocabulary(config, corpus), corpus.provenance
        encoded = {split: encode(vocab, text, f"the {split} split", ADVICE) for split, text in corpus.splits.items()}
    else:
        vocab, provenance, encoded = like.vocab, like.provenance, like.encoded
    training = batches.training_batches(framing, encoded["train"], seed)
    for key in stack.unread_keys(config):
        progress.warn(f"{key} has no effect: model.cell={config.model.cell} does not read it.")
    for sentence in [*blocks.without_effect(config), *devices.without_effect(config)]:
        progress.warn(sentence)
    for key, setting in (optim.unread_keys(config) | averaging.unread_keys(config)).items():
        progress.warn(f"{key} has no effect: {setting} does not read it.")
    functions = stack.functions(config, len(vocab))
    if like is None:
        draw_sample = _sample_drawer(config, functions, vocab, framing, corpus.splits)
    else:
        functions, draw_sample = like.functions._replace(init=functions.init), like.draw_sample
    for sentence in regularisers.keys_without_effect(config, len(functions.shape.blocks), framing.carries_state):
        progress.warn(sentence)
    protocol = Protocol.of(config, framing)
    if "validation" in encoded:
        protocol.check(encoded["validation"])  # reports an error now instead of after the first epoch
    elif best_by == "validation":
        raise UserError("train.best=validation: corpus.split leaves no validation text, so train.best must be train.")
    total_steps = length(config, training.steps_per_epoch)
    return Setup(
        vocab=vocab,
        provenance=provenance,
        encoded=encoded,
        batches=training,
        functions=functions,
        mesh=_mesh(training.rows, devices.wanted(config) if trials == 1 else 1),
        kernel=kernels.chosen(config),
        total_steps=total_steps,
        steps_per_call=steps_per_call(config.train.steps_per_call, framing, functions, trials),
        rates=learning_rates(config, training.steps_per_epoch),
        optimizer=optim.optimizer(config, training.steps_per_epoch),
        averaging=averaging.of_config(config, total_steps, "validation" in encoded, patience, best_by),
        log_every=config.train.log_every,
        eval_every=config.train.eval_every or training.steps_per_epoch,
        shown_every=shown_every(config, training.steps_per_epoch),
        checkpoint_every=config.train.checkpoint_every,
        patience=patience,
        halvings=config.train.halvings,
        best_by=best_by,
        protocol=protocol,
        draw_sample=draw_sample,
        seed=seed,
    )


def length(config: ConfigDict, steps_per_epoch: int) -> int:
    """The number of steps of the whole training."""
    return config.train.steps or max(1, config.train.least_steps, round(config.train.epochs * steps_per_epoch))


def shown_every(config: ConfigDict, steps_per_epoch: int) -> int:
    """The `shown_every` of a Setup.

    If the text is small, an epoch has few steps. One printed evaluation for each epoch would then fill the terminal, so at most
    MOST_SHOWN evaluations are printed.
    If epochs are not shorter than log intervals, or if `train.eval_every` is set, all evaluations are printed.
    """
    if config.train.eval_every or steps_per_epoch >= config.train.log_every:
        return 1
    return -(-length(config, steps_per_epoch) // MOST_SHOWN)


def learning_rates(config: ConfigDict, steps_per_epoch: int) -> Callable[[int, int], np.ndarray]:
    """The `rates` of a Setup."""
    return optim.rates(optim.schedule(config, length(config, steps_per_epoch), steps_per_epoch))


def steps_per_call(wanted: int, framing: Framing, functions: stack.Functions, trials: int = 1) -> int:
    """The number of training steps in one call of a compiled function.

    The result is `wanted`, unless `wanted` is 0. With 0, the result depends on the operations of a step: a call has several
    steps if the steps are short, or else one step. In a pack, a step has the operations of all its trials.

    For documents, the result is always 1, because batches of documents differ in length.
    """
    if framing.is_of_documents:
        return 1
    # For each character, each multiply-add takes 2 operations in the forward pass and 4 in the backward pass.
    operations = 6 * functions.operations * framing.rows * framing.length * trials
    return wanted or next((steps for steps in STEPS_PER_CALL if steps * operations <= MAX_OPERATIONS), 1)


def describe(setup: Setup, params: Any, verbose: bool) -> None:
    """Prints the data, the model, the length and the devices of a training. Also says if JAX can't use the machine's GPU.

    Args:
      params: the parameters, or their shapes.
      verbose: whether to print every array of the parameters, and the odd symbols of the corpus.
    """
    model = f"model: {blocks.in_words(setup.functions.shape)}, {stack.parameter_count(params):,} parameters"
    lines = [*_data_lines(setup), model]
    if verbose:
        lines = [*_data_lines(setup), *_odd_symbol_lines(setup), model, *stack.parameter_lines(params)]
    steps, epoch = setup.total_steps, setup.batches.steps_per_epoch
    rows = setup.batches.rows
    where = f"{rows} rows on {devices.in_words(setup.mesh.devices.flat)}"
    where += f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    length = f"{progress.counted(steps, 'step')}, {steps / epoch:.2f} epochs of {progress.counted(epoch, 'step')}"
    lines.append(f"training: {length}; {where}")
    if setup.shown_every > setup.eval_every:
        evaluations = progress.counted(-(-steps // setup.eval_every), "evaluation")
        lines.append(
            f"{evaluations}, one every {setup.eval_every} steps; at most {MOST_SHOWN} are printed, metrics.jsonl has all"
        )
    progress.tell("\n".join(lines))
    if cut := cut_in_words(_lengths_of_cut_splits(setup), setup.protocol.framing.length):
        progress.warn(cut)
    if sentence := accelerators.missing():
        progress.warn(sentence)


def _data_lines(setup: Setup) -> list[str]:
    splits = ", ".join(f"{split} {count:,}" for split, count in setup.provenance["splits"].items())
    unit = "bytes" if setup.vocab.of_bytes else "chars"
    lines = [f"data: {setup.provenance['name']}: {splits} {unit}, vocabulary of {len(setup.vocab)}"]
    if documents := setup.provenance.get("documents"):
        counts = ", ".join(f"{split} {count:,}" for split, count in documents["splits"].items())
        limit, lengths_D = setup.protocol.framing.length, _lengths_of_cut_splits(setup)
        cut = f", {(lengths_D > limit).sum():,} cut to batch.length={limit}" if len(lengths_D) else ""
        lines.append(f"documents: {counts}; {documents['empty']:,} empty skipped{cut}")
    return lines


def _odd_symbol_lines(setup: Setup) -> list[str]:
    """A line that lists the odd symbols of the corpus (see `vocab.is_odd`) and how often each occurs. Empty if it has none."""
    odd = sorted(setup.provenance["odd_symbols"].items(), key=lambda item: -item[1])
    names = [f"U+{ord(symbol):04X} {unicodedata.name(symbol, '')}".strip() + f" {count:,}" for symbol, count in odd]
    more = f", and {len(odd) - LISTED:,} more" if len(odd) > LISTED else ""
    return [f"odd symbols: {', '.join(names[:LISTED])}{more}"] if odd else []


def _lengths_of_cut_splits(setup: Setup) -> np.ndarray:
    """The number of characters of each document, for the splits whose documents are cut to `batch.length`.

    Only the framing `documents` cuts documents. Training and evaluation may have different framings, so perhaps only the
    training split or only the other splits are cut.
    """
    cuts = {"train": isinstance(setup.batches, batches.Documents)}
    evaluation_cuts = setup.protocol.framing.is_of_documents
    lengths = [encoded.lengths_D for split, encoded in setup.encoded.items() if cuts.get(split, evaluation_cuts)]
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def _mesh(rows: int, wanted: int) -> Mesh:
    mesh = devices.mesh(rows, wanted)
    if wanted > mesh.size and jax.process_count() == 1:
        progress.tell(f"note: devices={wanted}: only {mesh.size} of the available devices can share batch.size={rows} evenly.")
    return mesh


def _sample_drawer(
    config: ConfigDict, functions: stack.Functions, vocab: Vocab, framing: Framing, splits: dict
) -> Callable[[Any, int, int], str] | None:
    """A function (params, step, seed) → the text of a sample during training. None if `sample.length` is 0."""
    length, temperature = config.sample.length, config.sample.temperature
    if length == 0:
        return None
    prompt = corpora.sample_prompt(config, lambda: splits)
    encoded = vocab.encode(prompt, "sample.prompt")
    prompt_ids = np.concatenate([np.array(start_ids(config, vocab), encoded.dtype), encoded])
    generate = sample.sampler(functions, vocab, config.sample.top_k, window=framing.window)
    key_of = jax.jit(lambda seed, step: jax.random.fold_in(jax.random.key(seed), step))

    def draw(params: Any, step: int, seed: int) -> str:
        pieces = generate(params, prompt_ids, 1, length, temperature, key_of(np.uint32(seed), np.uint32(step)))
        return prompt + vocab.decode(sample.until_end(np.concatenate(list(pieces), axis=1)[0], vocab))

    return draw
