"""From a config to the things that a training works with: data, functions and numbers; nothing is written."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from charlm import progress
from charlm.data import batches, corpora
from charlm.data.vocab import PAD, Vocab
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.inference import sample
from charlm.inference.protocol import Protocol
from charlm.models import drawing, stack
from charlm.training import optim

TOGETHER = (10, 5, 2)  # steps in one call, where they are short
CALL = 1e12  # floating-point operations of a call at most, 3 s on two cores: more would have signals wait too long


@dataclasses.dataclass(frozen=True)
class Setup:
    """A config made into things. Nothing in here changes while it trains.

    Attributes:
      encoded: the splits as ids.
      mesh: of the devices that share the rows of a batch.
      rates: (step, count) → learning rates of so many steps by the schedule, float32 (count,).
      best_by: the loss that names the best checkpoint, `validation` or `train`.
      draw_sample: (params, step) → text, or None where no samples are asked for.
    """

    vocab: Vocab
    provenance: dict
    encoded: dict[str, batches.Encoded]
    batches: batches.Batches
    functions: stack.Functions
    mesh: Mesh
    total_steps: int
    steps_per_call: int
    rates: Callable[[int, int], np.ndarray]
    optimizer: optax.GradientTransformation
    log_every: int
    eval_every: int
    checkpoint_every: int
    patience: int
    halvings: int
    best_by: str
    protocol: Protocol
    draw_sample: Callable[[dict, int], str] | None
    seed: int

    @property
    def pad(self) -> int | None:
        return self.vocab.id_of(PAD)


def set_up(config) -> Setup:
    """Loads the corpus and builds model and optimiser.

    Raises:
      UserError: what the corpora, the vocabulary and the batches object to.
    """
    seed, best_by = config.seed, config.train.best
    framing = batches.Framing.of(config)
    corpus = corpora.load(config)
    vocab = _vocabulary(config, corpus)
    encoded = {split: batches.encode(vocab, text, f"the {split} split") for split, text in corpus.splits.items()}
    training = batches.training_batches(framing, encoded["train"], seed)
    functions = stack.functions(config, len(vocab))
    protocol = Protocol.of(config, framing)
    if "validation" in encoded:
        protocol.check(encoded["validation"])  # what does not fit is said now, not after an epoch
    elif best_by == "validation":
        raise UserError("train.best=validation, but corpus.split leaves no validation text: train.best=train would be right.")
    total_steps = config.train.steps or max(1, round(config.train.epochs * training.steps_per_epoch))
    return Setup(
        vocab=vocab,
        provenance=corpus.provenance,
        encoded=encoded,
        batches=training,
        functions=functions,
        mesh=_mesh(training.rows, devices.wanted(config)),
        total_steps=total_steps,
        steps_per_call=steps_per_call(config.train.steps_per_call, framing, functions),
        rates=optim.rates(optim.schedule(config, total_steps)),
        optimizer=optim.optimizer(config),
        log_every=config.train.log_every,
        eval_every=config.train.eval_every or training.steps_per_epoch,
        checkpoint_every=config.train.checkpoint_every,
        patience=config.train.patience,
        halvings=config.train.halvings,
        best_by=best_by,
        protocol=protocol,
        draw_sample=_sample_drawer(config, functions, vocab, seed, framing, corpus.splits),
        seed=seed,
    )


def steps_per_call(wanted: int, framing: batches.Framing, functions: stack.Functions) -> int:
    """How many steps one call makes where `wanted` of the config is 0: more than one where they are short.

    One for documents, whose batches differ in length, and for several processes, which must hear of signals at each step.
    """
    if framing.kind == "documents" or jax.process_count() > 1:
        return 1
    parameters = stack.parameter_count(jax.eval_shape(functions.init, jax.random.key(0)))
    operations = 6 * parameters * framing.rows * framing.length
    return wanted or next((steps for steps in TOGETHER if steps * operations <= CALL), 1)


def describe(setup: Setup, params) -> None:
    """Prints what is trained on what: splits, parameter table, length, devices."""
    progress.tell("\n".join([*_data_lines(setup), *stack.parameter_lines(params)]))
    steps, epoch = setup.total_steps, setup.batches.steps_per_epoch
    number = setup.mesh.size
    shared = f", {setup.batches.rows} rows on {number} devices" if number > 1 else ""
    shared += f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    progress.tell(f"{steps:,} steps, {steps / epoch:.2f} epochs of {epoch:,} steps, {jax.default_backend()}{shared}")


def describe_only(config, graph: str, graph_steps: int) -> int:
    """Prints what `describe` does of a config, and draws its network into a file; returns the exit status."""
    setup = set_up(config)
    describe(setup, jax.eval_shape(setup.functions.init, jax.random.key(0)))
    dot = drawing.unrolled(*setup.functions.shape, graph_steps, last_only=batches.Framing.of(config).window > 0)
    print(f"written: {', '.join(drawing.write(dot, graph))}")
    return 0


def _data_lines(setup: Setup) -> list[str]:
    splits = ", ".join(f"{split} {count:,}" for split, count in setup.provenance["splits"].items())
    lines = [f"{setup.provenance['name']}: {splits} chars, vocabulary of {len(setup.vocab)}"]
    if documents := setup.provenance.get("documents"):
        counts = ", ".join(f"{split} {count:,}" for split, count in documents["splits"].items())
        limit = setup.protocol.framing.length
        # Training and evaluation may have framings of their own, and only that of documents cuts them.
        cuts = {"train": isinstance(setup.batches, batches.Documents)}
        scored_cut = setup.protocol.framing.kind == "documents"
        read = [encoded.lengths_D for split, encoded in setup.encoded.items() if cuts.get(split, scored_cut)]
        cut = f", {sum((lengths_D > limit).sum() for lengths_D in read):,} cut to batch.length={limit}" if read else ""
        lines.append(f"documents: {counts}; {documents['empty']:,} empty skipped{cut}")
    return lines


def _vocabulary(config, corpus: corpora.Corpus) -> Vocab:
    names = {"train": ["train"], "corpus": list(corpus.splits)}[config.vocab.source]
    symbols = "".join(corpora.symbols_in(corpora.joined(corpus.splits[name])) for name in names)
    return Vocab.of(symbols, config.vocab.unknown, documents=not corpus.is_text)


def _mesh(rows: int, wanted: int) -> Mesh:
    mesh = devices.mesh(rows, wanted)
    if wanted > mesh.size and jax.process_count() == 1:
        progress.tell(f"note: devices={wanted}, but no more than {mesh.size} are there that share batch.size={rows} evenly.")
    return mesh


def _sample_drawer(config, functions: stack.Functions, vocab: Vocab, seed: int, framing: batches.Framing, splits: dict):
    """A function (params, step) → text for the samples that are written while training; None where none are asked for."""
    prompt, length, temperature = config.sample.prompt, config.sample.length, config.sample.temperature
    if length == 0:
        return None
    if prompt is None:
        prompt = corpora.opening(splits, framing.window or 1)
    prompt = corpora.prompt(prompt, config)
    prompt_ids = vocab.encode(prompt, "sample.prompt")
    generate = sample.sampler(functions, vocab, config.sample.top_k, window=framing.window)

    def draw(params, step: int) -> str:
        key = jax.random.fold_in(jax.random.key(seed), step)
        pieces = generate(params, prompt_ids, 1, length, temperature, key)
        return prompt + vocab.decode(sample.until_end(np.concatenate(list(pieces), axis=1)[0], vocab))

    return draw
