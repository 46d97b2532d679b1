"""Draws what `looking` finds as PNG files."""

import io
import math

import numpy as np
from matplotlib.figure import Figure

from charlm.inference.activations import LEFT, RIGHT
from charlm.inference.looking import Looked, symbol_text

MOST_SYMBOLS = 30  # symbols in the plot of the loss by symbol
MOST_SHOWN = 120  # symbols on the x axis of the plot of units


def draw(looked: Looked) -> dict[str, bytes]:
    """Draws all plots, and returns a dict from the name of a file to its PNG data.

    A plot without content, such as the gates of a cell without gates, is left out.
    """
    figures = {
        "saturation.png": _saturation(looked),
        "units.png": _units(looked),
        "loss_by_symbol.png": _by_symbol(looked),
        "loss_by_distance.png": _by_distance(looked),
    }
    images = {}
    for name, figure in figures.items():
        if figure is not None:
            image = io.BytesIO()
            figure.savefig(image, dpi=150, format="png")
            images[name] = image.getvalue()
    return images


def _saturation(looked: Looked) -> Figure | None:
    """One dot for each unit of a gate, as in Karpathy, Johnson & Li 2015.

    x is the fraction of the symbols at which the unit is above RIGHT (right-saturated), and y is the fraction of the symbols at
    which the unit is below LEFT (left-saturated).
    """
    gates = [each for each in looked.reading.series if each.is_gate]
    if not gates:
        return None
    layers = sorted({each.layer for each in gates})
    columns = max(sum(each.layer == layer for each in gates) for layer in layers)
    figure = Figure(figsize=(3 * columns + 0.5, 3.2 * len(layers)), layout="constrained")
    axes = figure.subplots(len(layers), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for row, layer in zip(axes, layers, strict=True):
        for axis, gate in zip(row, (each for each in gates if each.layer == layer), strict=False):
            left, right = looked.saturated[:, gate.columns]
            axis.set_visible(True)
            axis.scatter(right, left, s=9, alpha=0.5)
            axis.plot([0, 1], [1, 0], color="0.8", linewidth=1)
            axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=f"above {RIGHT} (share of symbols)")
            axis.set_ylabel(f"below {LEFT} (share of symbols)")
            axis.set_title(f"layer {layer}, {gate.name}", fontsize=10)
    return figure


def _units(looked: Looked) -> Figure | None:
    """One plot for each property: the property and the activation of its best unit.

    All plots show the same part of the text, in which as many properties as possible change.
    """
    best = {name: units[0] for name, units in looked.found.items() if units}
    total = len(looked.reading.values_PJ)
    if not best or not total:
        return None
    names = list(looked.found)
    start = _liveliest(looked.properties_PK[:total, [names.index(name) for name in best]])
    part = slice(start, min(total, start + MOST_SHOWN))
    figure = Figure(figsize=(14, 1.9 * len(best)), layout="constrained")
    axes = figure.subplots(len(best), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (name, found) in zip(axes, best.items(), strict=True):
        property_P = looked.properties_PK[part, names.index(name)]
        at = np.arange(len(property_P))
        # The height of the grey area is a fraction of the plot's height, so it does not depend on the values of the unit.
        heights_P, of_plot = property_P / max(property_P.max(), 1), axis.get_xaxis_transform()
        axis.fill_between(at, heights_P, step="mid", color="0.88", label=name, transform=of_plot)
        values_P = looked.reading.values_PJ[part, found.series.columns.start + found.unit]
        label = f"layer {found.series.layer}, {found.series.name} {found.unit} (correlation {found.correlation:.2f})"
        axis.plot(at, values_P, linewidth=1.3, label=label)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        axis.margins(x=0.005)
    symbols = [_label(looked, index) for index in looked.text.ids_P[part]]
    axes[-1].set_xticks(range(len(symbols)), symbols, fontsize=7, family="monospace")
    axes[-1].set_xlabel(f"symbols {part.start + 1:,} to {part.stop:,} of the text")
    return figure


def _liveliest(properties_PK: np.ndarray) -> int:
    """The position from which the next MOST_SHOWN symbols contain a change of as many properties as possible."""
    varied = np.abs(np.diff(properties_PK, axis=0, prepend=properties_PK[:1])) > 0
    sums = np.concatenate([np.zeros((1, varied.shape[1])), varied.cumsum(0)])
    starts = np.arange(max(1, len(varied) - MOST_SHOWN))
    changes = sums[np.minimum(starts + MOST_SHOWN, len(varied))] - sums[starts]
    return int(np.argmax((changes > 0).sum(1)))


def _by_symbol(looked: Looked) -> Figure | None:
    rows = looked.by_symbol[:MOST_SYMBOLS]
    if not rows:
        return None
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axis, at = figure.subplots(), np.arange(len(rows))
    series = [("this model", [row["nats"] for row in rows])]
    if looked.best_ngram is not None:
        series.append((f"n-gram of order {looked.best_ngram}", [row["ngram"] for row in rows]))
    for number, (label, nats) in enumerate(series):
        axis.bar(at + 0.4 * number - 0.2 * (len(series) - 1), nats, 0.8 / len(series), label=label)
    axis.set_xticks(at, [_label(looked, row["id"]) for row in rows], family="monospace")
    axis.set(xlabel="symbols with the largest share of the loss", ylabel="nats per symbol")
    axis.legend(fontsize=8)
    return figure


def _by_distance(looked: Looked) -> Figure | None:
    rows = looked.by_distance
    if not rows:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    centres = [math.sqrt(row["first"] * row["last"]) for row in rows]
    axis.plot(centres, [row["nats"] for row in rows], marker="o", label="this model, from the zero state")
    if looked.best_ngram is not None:
        mean = float(np.nanmean(looked.ngrams[looked.best_ngram]))
        axis.axhline(mean, color="0.6", linestyle="--", label=f"n-gram of order {looked.best_ngram}, whole text")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="symbols read since the zero state", ylabel="nats per symbol")
    axis.grid(True, alpha=0.2)
    axis.legend(fontsize=8)
    return figure


def _label(looked: Looked, index: int) -> str:
    return symbol_text(looked.vocab.names[index]).replace("$", r"\$")
