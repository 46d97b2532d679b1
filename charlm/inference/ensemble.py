"""Ensembles: the probability of a character is the mean of the probabilities that several models give it.

The last letters of an array name are its axes: B rows of the batch, S scored positions, R models.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from charlm import measures
from charlm.data import corpora
from charlm.data.ids import Encoded
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.inference.evaluate import placement
from charlm.inference.inputs import ScoredText
from charlm.inference.protocol import Protocol
from charlm.models.stack import Functions
from charlm.progress import counted
from charlm.rundir.run import Run

if TYPE_CHECKING:
    from charlm.inference.model import Model


def check(runs: Sequence[Run], framing: str | None, length: int | None, uses_split: bool) -> None:
    """Raises a UserError if the runs can't score a text together. The message names two of the runs.

    Args:
      runs: the runs, at least one.
      framing: the framing that the user gives. None means that the config of each run decides.
      length: the length of chunks or windows that the user gives. None means that the config of each run decides.
      uses_split: whether the text is a split of the runs' corpus.
    """
    first = runs[0]
    config, vocab, corpus = first.config(), first.vocab(), first.corpus()
    state = _state(Protocol.of_run(config, framing, length=length))
    for other in runs[1:]:
        both = f"{first.workdir} and {other.workdir}"
        other_config, other_vocab, other_corpus = other.config(), other.vocab(), other.corpus()
        if other_vocab != vocab:
            raise UserError(
                f"{both} have different vocabularies ({len(vocab)} and {len(other_vocab)} symbols): the runs of an ensemble "
                "need the same vocabulary."
            )
        if (other_state := _state(Protocol.of_run(other_config, framing, length=length))) != state:
            raise UserError(
                f"{both} read a text differently (recurrent state in the first: {state}; in the second: {other_state}): "
                "give --framing=stream, or --framing=chunks with --length."
            )
        if uses_split and any(other_corpus.get(key) != corpus.get(key) for key in ("sha256", "splits", "documents")):
            raise UserError(f"{both} have different corpora or splits: give the text to score with --text.")
        if not uses_split and _preparation(other_config, other_corpus) != _preparation(config, corpus):
            raise UserError(
                f"{both} prepare a text differently: the runs of an ensemble need the same corpus.newlines, corpus.lowercase, "
                "corpus.keep and corpus.documents."
            )


def evaluate(models: Sequence["Model"], scored: ScoredText, encoded: Encoded, protocol: Protocol) -> dict[str, Any]:
    """Scores a text with an ensemble.

    Args:
      models: the models. `check` must have accepted their runs.
      scored: the text.
      encoded: the text as ids.
      protocol: how the text is read.

    Returns:
      The fields of `Model.score`, without `step`. The protocol also has `method`, which describes the ensemble. `members` has
      the run directory and the step of each model, and the loss of this model alone in nats per character.

    Raises:
      UserError: the text does not fit the protocol.
    """
    begin = time.perf_counter()
    mesh = devices.mesh(protocol.rows_at_once, devices.wanted(models[0].config))
    placed = [placement(mesh, protocol.rows_at_once, model.params) for model in models]
    put = placed[0][0]
    windows = [jax.jit(_make_window(model.trained.functions)) for model in models]
    carries = [put(model.trained.functions.zero_carry(protocol.rows_at_once)) for model in models]
    nats, chars, nats_R = 0.0, 0, np.zeros(len(models))
    for batch in protocol.batches(encoded):
        on_devices = put(batch)
        losses = []
        for index, (window, (_, params)) in enumerate(zip(windows, placed, strict=True)):
            nats_BS, carries[index] = window(params, on_devices, carries[index])
            losses.append(nats_BS)
        nats_RBS = np.asarray(jax.device_get(losses), np.float64)
        joint_BS = math.log(len(models)) - np.logaddexp.reduce(-nats_RBS, axis=0)
        nats += float((batch.weights_BS * joint_BS).sum())
        nats_R += (batch.weights_BS * nats_RBS).sum((1, 2))
        chars += int(batch.weights_BS.sum())
    named = protocol.named(scored.sha256, scored.split, chars)
    named["method"] = f"ensemble of {counted(len(models), 'run')}, mean of the probabilities"
    return {
        **measures.of_text(nats, chars, *protocol.counts(encoded, models[0].vocab)),
        "seconds": round(time.perf_counter() - begin, 3),
        "protocol": named,
        "members": [
            {"workdir": str(model.run.workdir), "step": model.step, "nats": float(total / chars)}
            for model, total in zip(models, nats_R, strict=True)
        ],
    }


def _make_window(model: Functions) -> Callable:
    """Returns the pure function (params, batch, carry) → (nats_BS, carry)."""

    def window(params, batch, carry):
        logits_BSV, carry = model.apply(params, batch, carry)
        log_z_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
        return log_z_BS - jnp.take_along_axis(logits_BSV, batch.targets_BS[..., None], axis=-1, mode="clip")[..., 0], carry

    return window


def _state(protocol: Protocol) -> str:
    return protocol.framing.state_in_words(protocol.lanes, protocol.burn_in)


def _preparation(config: Any, corpus: dict[str, Any]) -> tuple:
    """How a run normalises a decoded text, and divides it into documents."""
    return corpora.Normalisation.of(config), corpora.form_of(config), "documents" in corpus
