"""Looks inside a trained model while it reads a text, and writes what it finds as one HTML page.

The page contains its data and needs no network. The text and the names of runs are inserted into the page as plain text, never
as HTML.

A series is one quantity of a layer, such as a gate; see `activations`. Letters in the names of arrays: P symbols of the text, K
properties, J units of all series one after the other, U units of one series, M predictions of a piece.
"""

import base64
import importlib.resources
import math
import sys
from typing import Any, NamedTuple

import numpy as np

from charlm import files
from charlm.data.framing import Framing, start_ids
from charlm.data.ids import encode
from charlm.data.longtext import Ids
from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.inference import findings, ngram, pieces
from charlm.inference.activations import LEFT, RIGHT, Reader, Reading, Series, half_bounds
from charlm.inference.inputs import ScoredText
from charlm.inference.protocol import Protocol
from charlm.inference.restore import Trained
from charlm.progress import characters, counted
from charlm.rundir.run import Run

PAGE_BYTES = 20_000_000  # by default, the activations in a page have at most this size
MOST_PAGE_BYTES = 200_000_000  # the largest size of the activations in a page, because browsers can't open much larger pages
SHOWN = 5000  # symbols that a page shows by default, if they fit into PAGE_BYTES
# For the loss by distance from the zero state, a text without documents is cut into pieces of this number of symbols.
PIECE = 512


class Text(NamedTuple):
    """A text that the model reads.

    Attributes:
      ids_P: the ids, with a start symbol before each document if the model reads start symbols.
      first_P: bool, whether the state is zero before a symbol.
      where: the name of the text in messages.
      total: the number of symbols of the whole text. `ids_P` may have only the beginning of this text.
    """

    ids_P: np.ndarray
    first_P: np.ndarray
    where: str
    total: int

    @classmethod
    def of(cls, scored: ScoredText, trained: Trained, most: int) -> "Text":
        """The first `most` symbols of a text."""
        encoded = scored.encoded(trained.vocab)
        ids_N = encoded.ids_N[np.arange(min(most, len(encoded.ids_N)))].astype(np.int32)
        first_N = np.arange(len(ids_N)) == 0
        if encoded.starts_D1 is not None:
            starts = encoded.starts_D1[encoded.starts_D1 < len(ids_N)]
            if start := start_ids(trained.config, trained.vocab):
                ids_N, first_N = np.insert(ids_N, starts, start[0]), np.insert(np.zeros(len(ids_N), bool), starts, True)
            else:
                first_N[starts] = True
        return cls(ids_N[:most], first_N[:most], scored.where, len(encoded.ids_N))

    def pieces(self) -> list[np.ndarray]:
        """The ids of each document. If the text has no documents, the ids of each piece of PIECE symbols."""
        starts = np.flatnonzero(self.first_P)[1:] if self.first_P.sum() > 1 else np.arange(PIECE, len(self.ids_P), PIECE)
        return np.split(self.ids_P, starts)


class Looked(NamedTuple):
    """What is found inside a model.

    Attributes:
      title: the name of the run and its step.
      notes: sentences about how the text was read.
      vocab: the vocabulary.
      text: the text.
      reading: what the model computed for the text.
      properties_PK: the properties of each symbol of the text; see `findings.properties`.
      searched: the text in which units were searched and saturated gates were counted: its name and its number of symbols.
      found: the units that tell a property; see `findings.find`.
      saturated: `Reading.saturated` of the text that was searched.
      ngrams: a dict from the order of an n-gram to the nats of each symbol of the text. nan where `reading.nats_P` is nan.
        Empty if no n-gram was computed.
      by_symbol: see `loss_by_symbol`.
      by_distance: see `loss_by_distance`.
    """

    title: str
    notes: list[str]
    vocab: Vocab
    text: Text
    reading: Reading
    properties_PK: np.ndarray
    searched: tuple[str, int]
    found: dict[str, list[findings.Found]]
    saturated: np.ndarray
    ngrams: dict[int, np.ndarray]
    by_symbol: list[dict[str, Any]]
    by_distance: list[dict[str, Any]]

    @property
    def best_ngram(self) -> int | None:
        """The order of the n-gram with the lowest loss."""
        return min(self.ngrams, key=lambda order: np.nansum(self.ngrams[order]), default=None)


def look(
    run: Run, trained: Trained, scored: ScoredText, split: ScoredText | None, most: int, shown: int | None, orders: list[int]
) -> Looked:
    """Reads a text with a model.

    Args:
      run: the run, whose train split the n-grams count.
      trained: the model.
      scored: the text.
      split: a split of the run's corpus, or None. If the text has fewer than `most` symbols and this split has more symbols
        than the text, units are searched in the split instead of in the text.
      most: the largest number of symbols that are read from the beginning of each text.
      shown: the number of symbols whose activations are kept for the page. None: SHOWN, or fewer if SHOWN symbols do not fit
        into PAGE_BYTES.
      orders: the orders of the n-grams. May be empty.

    Raises:
      UserError: the page would be too large, or the corpus of the run can't be read.
    """
    text = Text.of(scored, trained, most)
    reader = Reader(trained.functions, trained.params)
    width = reader.series[-1].columns.stop
    kept = _kept(width, shown)
    notes = _notes(trained, text, kept, counts_itself=bool(orders) and scored.split == "train")
    names = trained.vocab.names
    ngrams = {}
    if orders:
        train = encode(trained.vocab, run.splits()["train"], "the train split").ids_N
        print(f"counting n-grams of the train split: {counted(len(train), 'char')} …", file=sys.stderr, flush=True)
        ngrams = _ngrams(train, text, trained, orders)

    properties_PK = findings.properties([names[index] for index in text.ids_P], text.first_P)
    with characters(f"reading {text.where}", len(text.ids_P)) as progress:
        reading = reader.read(text.ids_P, text.first_P, properties_PK, kept, progress)
    searched, halves, saturated = text, reading.halves, reading.saturated
    if split is not None and len(text.ids_P) < most:
        other = Text.of(split, trained, most)
        if len(other.ids_P) > len(text.ids_P):
            searched = other
            of_other_PK = findings.properties([names[index] for index in other.ids_P], other.first_P)
            with characters(f"searching units in {other.where}", len(other.ids_P)) as progress:
                of_other = reader.read(other.ids_P, other.first_P, of_other_PK, 0, progress)
            halves, saturated = of_other.halves, of_other.saturated
    best = min(ngrams, key=lambda order: np.nansum(ngrams[order]), default=None)
    return Looked(
        title=f"{run.workdir}, step {trained.step:,}",
        notes=notes,
        vocab=trained.vocab,
        text=text,
        reading=reading,
        properties_PK=properties_PK,
        searched=(searched.where, len(searched.ids_P)),
        found=findings.find(halves, reading.series),
        saturated=saturated,
        ngrams=ngrams,
        by_symbol=loss_by_symbol(text.ids_P, reading.nats_P, None if best is None else ngrams[best]),
        by_distance=loss_by_distance(trained, text),
    )


def _ngrams(train: Ids, text: Text, trained: Trained, orders: list[int]) -> dict[int, np.ndarray]:
    """A dict from each order to the nats of each symbol. nan at the symbols that the model does not predict."""
    # The n-grams do not read start symbols, because the <eos> at the end of the previous document has the same effect.
    starts = start_ids(trained.config, trained.vocab)
    read_P = ~text.first_P if starts else np.ones(len(text.ids_P), bool)
    found = {}
    for order, nats in ngram.scores(train, text.ids_P[read_P], len(trained.vocab), orders).items():
        found[order] = np.full(len(text.ids_P), np.nan)
        found[order][read_P] = nats
        found[order][text.first_P] = np.nan
    return found


def _kept(width: int, shown: int | None) -> int:
    """The number of symbols whose activations the page shows."""
    size = 4 * width / 3  # bytes of a symbol: each value is one byte, and base64 writes 3 bytes as 4 characters
    if shown is None:
        return max(1, min(SHOWN, int(PAGE_BYTES / size)))
    if shown * size > MOST_PAGE_BYTES:
        raise UserError(
            f"--chars={shown}: the page would have {shown * size / 1e6:,.0f} MB, because the model has {width:,} values for "
            f"each symbol: give at most {int(MOST_PAGE_BYTES / size):,}."
        )
    return shown


def _notes(trained: Trained, text: Text, kept: int, counts_itself: bool) -> list[str]:
    unit = "byte" if trained.vocab.of_bytes else "symbol"
    notes, read = [], len(text.ids_P)
    if read < text.total:
        notes.append(f"The model read only the first {counted(read, unit)} of {text.total:,} (flag --read).")
    if kept < read:
        notes.append(
            f"The page shows the first {counted(kept, unit)} of the text (flag --chars). The losses are computed from all "
            f"{counted(read, unit)} that the model read."
        )
    framing = Framing.of(trained.config)
    if framing.kind in ("windows", "chunks"):
        notes.append(
            f"The model was trained on {framing.kind} of {framing.length} symbols. In training, the state was zero at the "
            f"start of each {framing.kind.removesuffix('s')}. Here, the state is carried through the text."
        )
    if counts_itself:
        notes.append(
            "The n-grams count the symbols of the train split. This text is a part of the train split, so the losses of the "
            "n-grams are too low."
        )
    if text.first_P.sum() > 1:
        notes.append("The state is zero before each document.")
    return notes


def loss_by_symbol(ids_P: np.ndarray, nats_P: np.ndarray, ngram_P: np.ndarray | None) -> list[dict[str, Any]]:
    """The loss of each symbol, the symbol with the largest sum of nats first.

    Each dict has `id`, `count` (how often the symbol is scored), `nats` (the mean loss), `share` (the sum of its
    nats, as a fraction of the sum over the whole text) and `ngram` (the mean loss of an n-gram for this symbol, or None).
    """
    scored_P = ~np.isnan(nats_P)
    ids_M, nats_M = ids_P[scored_P], nats_P[scored_P]
    counts, sums = np.bincount(ids_M), np.bincount(ids_M, nats_M)
    others = None if ngram_P is None else np.bincount(ids_M, ngram_P[scored_P])
    total = max(float(sums.sum()), 1e-300)
    rows = [
        {
            "id": int(index),
            "count": int(counts[index]),
            "nats": float(sums[index] / counts[index]),
            "share": float(sums[index] / total),
            "ngram": None if others is None else float(others[index] / counts[index]),
        }
        for index in np.flatnonzero(counts)
    ]
    return sorted(rows, key=lambda row: -row["share"])


def loss_by_distance(trained: Trained, text: Text) -> list[dict[str, Any]]:
    """The loss by the number of symbols that the model has read since the zero state.

    This number of symbols is the distance. Each piece of the text is read from the zero state; see `Text.pieces`. The result
    has one dict for each range of distances, with `first` and `last` (the smallest and the largest distance), `count` (the
    number of symbols that were scored at these distances) and `nats` (their mean loss).
    """
    parts = text.pieces()
    rows = min(Protocol.of_run(trained.config).rows, len(parts))
    sums, counts = np.zeros(max(map(len, parts))), np.zeros(max(map(len, parts)), int)
    for _, scores in pieces.score(trained.functions, trained.params, parts, rows):
        sums[: len(scores.nats_M)] += scores.nats_M  # prediction m is made after m + 1 symbols
        counts[: len(scores.nats_M)] += 1
    longest, first = int(np.count_nonzero(counts)), 1
    found: list[dict[str, Any]] = []
    while first <= longest:
        last = min(2 * first - 1, longest)
        count, nats = int(counts[first - 1 : last].sum()), float(sums[first - 1 : last].sum())
        found.append({"first": first, "last": last, "count": count, "nats": nats / count})
        first = last + 1
    return found


def page(looked: Looked) -> str:
    """The HTML page."""
    folder = importlib.resources.files("charlm.inference")
    template, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("looking.html", "looking.js"))
    return template.replace("__SCRIPT__", script).replace("__DATA__", files.embedded(content(looked)))


def content(looked: Looked) -> dict[str, Any]:
    """The data of the page, as JSON values."""
    reading, text, vocab = looked.reading, looked.text, looked.vocab
    kept = len(reading.values_PJ)
    best = looked.best_ngram
    signals = [_signal("surprisal", reading.nats_P[:kept] / math.log(2), "bits")]
    if best is not None:
        ngram_bits_P = looked.ngrams[best][:kept] / math.log(2)
        signals.append(_signal(f"surprisal of the n-gram of order {best}", ngram_bits_P, "bits"))
    for column, name in enumerate(findings.PROPERTIES):
        signals.append(_signal(name, looked.properties_PK[:kept, column], ""))
    scored_P = ~np.isnan(reading.nats_P)
    middle = half_bounds(looked.searched[1])[0][1]
    return {
        "title": looked.title,
        "notes": looked.notes,
        "where": text.where,
        "unit": "byte" if vocab.of_bytes else "symbol",
        "names": list(vocab.names),
        "specials": len(vocab.specials),
        "ids": text.ids_P[:kept].tolist(),
        "characters": _characters(text.ids_P[:kept], vocab) if vocab.of_bytes else None,
        "starts": np.flatnonzero(text.first_P[:kept]).tolist(),
        "likeliest": reading.likeliest_PA[:kept].tolist(),
        "probabilities": [[float(f"{p:.4g}") for p in row] for row in reading.probabilities_PA[:kept]],
        "signals": signals,
        "series": [_series(each, reading.values_PJ[:, each.columns]) for each in reading.series],
        "searched": {
            "where": looked.searched[0],
            "chosen": middle,
            "tested": looked.searched[1] - middle,
            "tooFew": middle < findings.FEWEST,
        },
        "found": [
            {
                "property": name,
                "meaning": findings.PROPERTIES[name],
                "units": [
                    {"series": reading.series.index(each.series), "unit": each.unit, "correlation": each.correlation}
                    for each in units
                ],
            }
            for name, units in looked.found.items()
        ],
        "left": LEFT,
        "right": RIGHT,
        "gates": [_gate(each, looked.saturated[:, each.columns]) for each in reading.series if each.is_gate],
        "nats": _mean(reading.nats_P),
        "count": int(scored_P.sum()),
        "ngrams": [{"order": order, "nats": _mean(nats_P)} for order, nats_P in looked.ngrams.items()],
        "best_ngram": best,
        "by_symbol": looked.by_symbol,
        "by_distance": looked.by_distance,
    }


def _characters(ids_P: np.ndarray, vocab: Vocab) -> list[str | None]:
    """What the page shows for each byte of the text.

    For the last byte of a character, this is the character. For the other bytes of the character, it is a dot. None if the name
    of the byte is a single character, because the page then shows this name.
    """
    decode = vocab.decoder()
    shown = [decode([index], False) or "·" for index in ids_P]
    return [None if len(vocab.names[index]) == 1 else text for index, text in zip(ids_P, shown, strict=True)]


def _mean(nats_P: np.ndarray) -> float | None:
    return float(np.nanmean(nats_P)) if not np.isnan(nats_P).all() else None


def _signal(name: str, values_P: np.ndarray, unit: str) -> dict[str, Any]:
    """One value for each symbol of the text, independent of any layer. JSON has no nan, so nan becomes None."""
    return {"name": name, "unit": unit, "values": [None if np.isnan(each) else round(float(each), 3) for each in values_P]}


def _gate(series: Series, saturated: np.ndarray) -> dict[str, Any]:
    left, right = (np.round(each, 4).tolist() for each in saturated)
    return {"layer": series.layer, "name": series.name, "left": left, "right": right}


def _series(series: Series, values_PU: np.ndarray) -> dict[str, Any]:
    """A quantity of a layer as JSON values. `data` has one byte for each value, in base64.

    The bytes of each unit are a row. Base64 writes 3 bytes as 4 characters. Each row is therefore padded to a multiple of 3
    bytes, so that the page can decode the row of one unit without the other rows. For a gate, a byte b is the value b / 255.
    For other quantities, b is the value (b - 128) / 127 times `scale`, which is the largest absolute value of the unit.
    """
    if series.is_gate:
        scale_U = np.ones(series.units)
        codes_PU = np.round(np.clip(values_PU, 0, 1) * 255)
    else:
        scale_U = np.abs(values_PU).max(0, initial=0)
        codes_PU = np.round(values_PU / np.where(scale_U > 0, scale_U, 1)[None, :] * 127) + 128
    rows = np.zeros((series.units, -(-len(values_PU) // 3) * 3), np.uint8)
    rows[:, : len(values_PU)] = codes_PU.T
    return {
        "layer": series.layer,
        "name": series.name,
        "gate": series.is_gate,
        "units": series.units,
        "scale": [float(f"{each:.4g}") for each in scale_U],
        "data": base64.b64encode(rows.tobytes()).decode("ascii"),
    }


def symbol_text(name: str) -> str:
    """A symbol as text for a plot: characters that are not printable ASCII become escapes."""
    return "␣" if name == " " else name.encode("unicode_escape").decode("ascii")
