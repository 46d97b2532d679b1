"""Pictures of runs: learning curves with bands over seeds, and what a sweep found about one knob or two."""

import io
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from charlm import files
from charlm.compare import reading, tables
from charlm.config import keys as config_keys
from charlm.errors import UserError

NAMED_CURVES = 10  # more are drawn thin, and only the best are named
AXES = {"step": "steps", "chars": "characters trained on", "seconds": "seconds"}
MOST_TICKS = 12  # more values of a knob are an axis of numbers
LOG_FROM = 30.0  # an axis is logarithmic where its largest value is so many times its smallest


class Curve(NamedTuple):
    """A group's nats at some points; low and high over its seeds."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def write(file: str, comparable: Sequence[tuple[dict, Sequence[tables.Group]]], metric: str, x: str, by: Sequence[str]) -> str:
    """Draws runs, a picture for each protocol one below the other, into a .png or .svg; returns the file's name.

    Args:
      comparable: what `tables.by_protocol` found, grouped. by: no key for curves, one for a line, two for a map.

    Raises:
      UserError: there is nothing to draw, or the file can't be written.
    """
    comparable = [
        (protocol, groups) for protocol, groups in comparable if any(group.figure(metric) is not None for group in groups)
    ]
    if not comparable:
        raise UserError(f"--plot={file}: none of these runs has a figure yet.")
    curves = [("", []) if by else _curves(groups, metric, x) for _, groups in comparable]
    drawn = [(*table, *found) for table, found in zip(comparable, curves, strict=True) if by or found[1]]
    if not drawn:
        raise UserError(f"--plot={file}: these runs have no curves: they have written no metrics.")
    figure = Figure(figsize=(9, 5.5 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), 1, squeeze=False)
    try:
        for axis, (protocol, groups, split, found) in zip(axes[:, 0], drawn, strict=True):
            axis.set_title(tables.protocol_in_words(protocol), fontsize=9, loc="left")
            if len(by) == 2:
                _draw_map(figure, axis, groups, by, metric)
            elif by:
                _draw_knob(axis, groups, by[0], metric)
            else:
                _draw_curves(axis, split, found, x)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=150, format=pathlib.Path(file).suffix[1:] or "png")
        files.write(pathlib.Path(file), picture.getvalue())
    except OSError as error:
        raise UserError(f"--plot={file} can't be written ({error.strerror}): choose another file.") from error
    return file


def curve_of(series: Sequence[dict[str, list]], x: str) -> Curve | None:
    """The mean over seeds at the steps that all of them have; None where there is nothing. series: a seed each."""
    series = [reading.within_reason(each) for each in series]
    steps = sorted(set.intersection(*(set(each["step"]) for each in series))) if series else []
    if not steps:
        return None
    at = [{step: place for place, step in enumerate(each["step"])} for each in series]
    nats = np.array([[each["nats"][place[step]] for step in steps] for each, place in zip(series, at, strict=True)])
    axis = np.array([[each[x][place[step]] for step in steps] for each, place in zip(series, at, strict=True)], float)
    return Curve(axis.mean(0), nats.mean(0), nats.min(0), nats.max(0))


def _curves(groups: Sequence[tables.Group], metric: str, x: str) -> tuple[str, list[tuple[tables.Group, Curve]]]:
    """The curves of those that have one, the best first, of one split for all: validation, or where no run has been evaluated,
    or the metric is of training, the training loss."""
    ranked = sorted(groups, key=lambda group: math.inf if group.figure(metric) is None else group.figure(metric))
    series = [[reading.series(record) for record in group.counted] for group in ranked]
    evaluated = any(each["validation"]["step"] for seeds in series for each in seeds)
    split = "validation" if evaluated and metric != "train" else "train"
    curves = [(group, curve_of([each[split] for each in seeds], x)) for group, seeds in zip(ranked, series, strict=True)]
    return split, [(group, curve) for group, curve in curves if curve is not None]


def _draw_curves(axis, split: str, curves: Sequence[tuple[tables.Group, Curve]], x: str) -> None:
    many = len(curves) > NAMED_CURVES
    colours = (
        matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(curves))) if many else matplotlib.colormaps["tab10"].colors
    )
    keys = tables.differing_keys([record for group, _ in curves for record in group.records], besides=("seed",))
    for place, (group, curve) in reversed(list(enumerate(curves))):  # the best on top
        named = not many or place < NAMED_CURVES // 2
        style = {"linewidth": 1.8, "alpha": 1.0} if named else {"linewidth": 0.7, "alpha": 0.6}
        label = _label(group, keys) if named else None
        marker = "o" if len(curve.x) <= 30 and not many else None
        axis.plot(curve.x, np.exp(curve.mean), color=colours[place], label=label, marker=marker, markersize=3, **style)
        if len(group.counted) > 1:
            axis.fill_between(curve.x, np.exp(curve.low), np.exp(curve.high), color=colours[place], alpha=0.2, linewidth=0)
    axis.set_xlabel(AXES[x])
    axis.set_ylabel(f"{split} perplexity" if split == "validation" else "training perplexity")
    axis.set_yscale("log")
    _plain_ticks(axis.yaxis)
    xs = np.concatenate([curve.x for _, curve in curves])
    if xs.min() > 0 and xs.max() / xs.min() > LOG_FROM:
        axis.set_xscale("log")
    axis.grid(True, which="both", alpha=0.15)
    handles, labels = axis.get_legend_handles_labels()
    title = f"best {NAMED_CURVES // 2} of {len(curves)}" if many else None
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 2, "frameon": False}  # where it hides no curve
    axis.legend(handles[::-1], labels[::-1], fontsize=8, title=title, title_fontsize=8, **below)


def _draw_knob(axis, groups: Sequence[tables.Group], key: str, metric: str) -> None:
    """Each configuration a dot, their means a line with standard errors."""
    marginals = tables.marginals(groups, [key], metric)
    values = [marginal.value[0] for marginal in marginals]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = {repr(value): value if numeric else place for place, value in enumerate(values)}
    dots = [
        (places[repr(group.config.get(key))], group.figure(metric))
        for group in tables.finished(groups)
        if group.figure(metric) is not None
    ]
    axis.scatter(*zip(*dots, strict=True), s=14, color="0.6", label="each configuration", zorder=2)
    axis.errorbar(
        [places[repr(value)] for value in values],
        [marginal.nats for marginal in marginals],
        yerr=[marginal.error or 0.0 for marginal in marginals],
        marker="o",
        capsize=4,
        label="mean ± standard error",
        zorder=3,
    )
    if numeric and min(values) > 0 and max(values) / min(values) >= 4:
        axis.set_xscale("log")
    if len(values) <= MOST_TICKS or not numeric:
        axis.set_xticks([places[repr(value)] for value in values], [tables.written(value) for value in values])
        axis.minorticks_off()
    axis.set_xlabel(key)
    axis.set_ylabel("nats per character")
    axis.grid(True, alpha=0.2)
    axis.legend(fontsize=8)


def _draw_map(figure, axis, groups: Sequence[tables.Group], keys: Sequence[str], metric: str) -> None:
    marginals = tables.marginals(groups, keys, metric)
    # By what they are written as: lists, such as corpus.split, are no keys of a dict.
    rows, columns = (
        {repr(marginal.value[place]): marginal.value[place] for marginal in _ordered(marginals, place)} for place in (0, 1)
    )
    table = np.full((len(rows), len(columns)), np.nan)
    for marginal in marginals:
        row, column = (list(values).index(repr(value)) for values, value in zip((rows, columns), marginal.value, strict=True))
        table[row, column] = marginal.nats
    image = axis.imshow(table, cmap="viridis_r", aspect="auto")
    for row, column in np.argwhere(np.isfinite(table)):
        colour = readable_on(image.cmap(image.norm(table[row, column])))
        axis.text(column, row, f"{table[row, column]:.4f}", ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(columns)), [tables.written(value) for value in columns.values()])
    axis.set_yticks(range(len(rows)), [tables.written(value) for value in rows.values()])
    axis.set_xlabel(keys[1])
    axis.set_ylabel(keys[0])
    figure.colorbar(image, ax=axis, label="nats per character")


def readable_on(colour: tuple[float, float, float, float]) -> str:
    """Black or white, whichever can be read on a colour given as red, green, blue, alpha in [0, 1]."""
    red, green, blue, _ = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _ordered(marginals: Sequence[tables.Marginal], place: int) -> list[tables.Marginal]:
    return sorted(marginals, key=lambda marginal: tables.sortable(marginal.value[place]))


def _label(group: tables.Group, keys: Sequence[str]) -> str:
    """What sets a group apart, in a legend's width."""
    text = ", ".join(f"{config_keys.short(key)} {tables.written(group.config.get(key))}" for key in keys) or group.name
    seeds = f" ({len(group.counted)} seeds)" if len(group.counted) > 1 else ""
    return (text if len(text) <= 60 else text[:57] + "…").replace("$", r"\$") + seeds


def _plain_ticks(axis) -> None:
    """Perplexities as 4, 5, 6 and not as powers of ten."""
    for which in ("major", "minor"):
        getattr(axis, f"set_{which}_formatter")(FuncFormatter(lambda value, _: f"{value:g}"))
