"""Draws plots of runs: learning curves, or the effect of one or two config keys on the result.

Runs that differ only in their seed are drawn as one curve, which is their mean. A band around the curve shows the range from
their minimum to their maximum.

In this module, a figure is either a number that measures a run, in nats/char, or the drawing (`matplotlib.figure.Figure`).
"""

import io
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from charlm import files
from charlm.compare import marginals, reading, tables
from charlm.compare.curves import Curve, curve_of
from charlm.config import keys as config_keys
from charlm.errors import UserError

MAX_NAMED_CURVES = 10  # if a plot has more curves, its legend names only the MAX_NAMED_CURVES / 2 best curves
X_LABELS = {"step": "steps", "chars": "characters trained on", "seconds": "seconds"}
MAX_TICKS = 12  # on the x axis for a numeric key, each value has its own tick if there are at most this many values
LOG_RATIO = 30.0  # the x axis of learning curves is logarithmic if its largest value exceeds LOG_RATIO times its smallest value


class _Plot(NamedTuple):
    """The contents of one plot. All runs in a plot were evaluated under the same protocol.

    Attributes:
      protocol: the protocol, which says on which text and in which way the runs were evaluated.
      groups: the groups of runs in the plot.
      split: the split whose learning curves are drawn. Empty in a plot of the effect of config keys.
      curves: each group with its learning curve. Empty in a plot of the effect of config keys.
    """

    protocol: dict
    groups: Sequence[tables.Group]
    split: str
    curves: list[tuple[tables.Group, Curve]]


def write(file: str, comparable: Sequence[tuple[dict, Sequence[tables.Group]]], metric: str, x: str, by: Sequence[str]) -> str:
    """Draws a plot for each protocol, one plot below the other, and returns the name of the file.

    Args:
      file: a name that ends in .png or .svg.
      comparable: pairs of a protocol and the groups of runs that were evaluated under this protocol.
      metric: the number to compare, one of tables.METRICS.
      x: what the x axis of learning curves shows: step, chars or seconds.
      by: at most two config keys. Without keys, learning curves are drawn. With one key, the plot shows the mean of the metric
        for each value of the key. With two keys, the plot is a map that shows this mean for each pair of values.

    Raises:
      UserError: there is nothing to draw, or the file can't be written.
    """
    comparable = [
        (protocol, groups) for protocol, groups in comparable if any(group.figure(metric) is not None for group in groups)
    ]
    if not comparable:
        raise UserError(f"--plot={file}: none of these runs has a figure for --metric={metric} yet.")
    plots = [_Plot(protocol, groups, *(("", []) if by else _curves(groups, metric))) for protocol, groups in comparable]
    plots = [plot for plot in plots if by or plot.curves]
    if not plots:
        raise UserError(f"--plot={file}: these runs have no curves: they have written no metrics.")
    figure = Figure(figsize=(9, 5.5 * len(plots)), layout="constrained")
    axes = figure.subplots(len(plots), 1, squeeze=False)
    try:
        for axis, plot in zip(axes[:, 0], plots, strict=True):
            axis.set_title(tables.protocol_in_words(plot.protocol), fontsize=9, loc="left")
            if len(by) == 2:
                _draw_map(figure, axis, plot.groups, by, metric)
            elif by:
                _draw_key(axis, plot.groups, by[0], metric)
            else:
                _draw_curves(axis, plot.split, plot.curves, x)
        image = io.BytesIO()
        figure.savefig(image, dpi=150, format=pathlib.Path(file).suffix[1:] or "png")
        files.write(pathlib.Path(file), image.getvalue())
    except OSError as error:
        raise UserError(f"--plot={file} can't be written ({error.strerror}): choose another file.") from error
    return file


def _curves(groups: Sequence[tables.Group], metric: str) -> tuple[str, list[tuple[tables.Group, Curve]]]:
    """The split to plot, and the groups with their curves. The best group comes first. Groups without a curve are left out.

    All groups are plotted for the same split. This split is `train` if the metric is `train` or if no run has been evaluated,
    and `validation` otherwise.
    """

    def rank(group: tables.Group) -> float:
        figure = group.figure(metric)
        return math.inf if figure is None else figure

    ranked = sorted(groups, key=rank)
    series = [[reading.series(record) for record in group.averaged] for group in ranked]
    evaluated = any(each["validation"]["step"] for seeds in series for each in seeds)
    split = "validation" if evaluated and metric != "train" else "train"
    curves = [(group, curve_of([each[split] for each in seeds])) for group, seeds in zip(ranked, series, strict=True)]
    return split, [(group, curve) for group, curve in curves if curve is not None]


def _draw_curves(axis: Axes, split: str, curves: Sequence[tuple[tables.Group, Curve]], x: str) -> None:
    many = len(curves) > MAX_NAMED_CURVES
    if many:
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(curves)))
    else:
        colours = matplotlib.colormaps["tab10"](np.arange(10))
    keys = tables.differing_keys([record for group, _ in curves for record in group.records], besides=("seed",))
    for rank, (group, curve) in reversed(list(enumerate(curves))):  # draws the best curve last, on top
        named = not many or rank < MAX_NAMED_CURVES // 2
        style: dict[str, Any] = {"linewidth": 1.8, "alpha": 1.0} if named else {"linewidth": 0.7, "alpha": 0.6}
        label = _label(group, keys) if named else None
        xs = getattr(curve, x)
        marker = "o" if len(xs) <= 30 and not many else None
        axis.plot(xs, np.exp(curve.mean), color=colours[rank], label=label, marker=marker, markersize=3, **style)
        if len(group.averaged) > 1:
            axis.fill_between(xs, np.exp(curve.low), np.exp(curve.high), color=colours[rank], alpha=0.2, linewidth=0)
    axis.set_xlabel(X_LABELS[x])
    axis.set_ylabel(f"{split} perplexity" if split == "validation" else "training perplexity")
    axis.set_yscale("log")
    _plain_ticks(axis.yaxis)
    xs = np.concatenate([getattr(curve, x) for _, curve in curves])
    if xs.min() > 0 and xs.max() / xs.min() > LOG_RATIO:
        axis.set_xscale("log")
    axis.grid(True, which="both", alpha=0.15)
    handles, labels = axis.get_legend_handles_labels()
    title = f"best {MAX_NAMED_CURVES // 2} of {len(curves)}" if many else None
    # The legend is below the plot, so that it hides no curve.
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 2, "frameon": False}
    axis.legend(handles[::-1], labels[::-1], fontsize=8, title=title, title_fontsize=8, **place)


def _draw_key(axis: Axes, groups: Sequence[tables.Group], key: str, metric: str) -> None:
    """Draws a dot for each config, and a line through the means. There is one mean for each value of the key.

    The error bar of a mean shows the standard deviation over the configs that have this value. If only one config has this
    value, the error bar shows the standard error over the seeds of this config. See `marginals.Marginal`.
    """
    means = marginals.marginals([record for group in groups for record in group.records], [key], metric)
    values = [mean.value[0] for mean in means]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    x_of = {repr(value): value if numeric else index for index, value in enumerate(values)}  # repr, as lists can't be dict keys
    dots = [(x_of[repr(mean.value[0])], figure) for mean in means for figure in mean.figures]
    dot_xs, dot_figures = zip(*dots, strict=True)
    axis.scatter(dot_xs, dot_figures, s=14, color="0.6", label="each configuration", zorder=2)
    axis.plot([x_of[repr(value)] for value in values], [mean.nats for mean in means], marker="o", color="C0", label="mean")
    for label, error_of, colour in (
        ("± standard deviation over configurations", lambda mean: mean.spread, "C0"),
        ("± standard error over seeds", lambda mean: mean.error, "C1"),
    ):
        bars = [(x_of[repr(mean.value[0])], mean.nats, error_of(mean)) for mean in means if error_of(mean) is not None]
        if bars:
            xs, figures, errors = zip(*bars, strict=True)
            axis.errorbar(xs, figures, yerr=errors, linestyle="none", capsize=4, color=colour, label=label, zorder=3)
    if numeric and min(values) > 0 and max(values) / min(values) >= 4:
        axis.set_xscale("log")
    if len(values) <= MAX_TICKS or not numeric:
        axis.set_xticks([x_of[repr(value)] for value in values], [tables.value_text(value) for value in values])
        axis.minorticks_off()
    axis.set_xlabel(key)
    axis.set_ylabel("nats per character")
    axis.grid(True, alpha=0.2)
    axis.legend(fontsize=8)


def _draw_map(figure: Figure, axis: Axes, groups: Sequence[tables.Group], keys: Sequence[str], metric: str) -> None:
    """Draws a map with the mean of the metric for each pair of values of the two keys.

    Each row of the map is a value of the first key. Each column is a value of the second key.
    """
    means = marginals.marginals([record for group in groups for record in group.records], keys, metric)
    rows, columns = _distinct_values(means, 0), _distinct_values(means, 1)
    table = np.full((len(rows), len(columns)), np.nan)
    for mean in means:
        row, column = (list(values).index(repr(value)) for values, value in zip((rows, columns), mean.value, strict=True))
        table[row, column] = mean.nats
    image = axis.imshow(table, cmap="viridis_r", aspect="auto")
    for row, column in np.argwhere(np.isfinite(table)):
        colour = readable_on(image.cmap(image.norm(table[row, column])))
        axis.text(column, row, f"{table[row, column]:.4f}", ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(columns)), [tables.value_text(value) for value in columns.values()])
    axis.set_yticks(range(len(rows)), [tables.value_text(value) for value in rows.values()])
    axis.set_xlabel(keys[1])
    axis.set_ylabel(keys[0])
    figure.colorbar(image, ax=axis, label="nats per character")


def readable_on(colour: Sequence[float] | np.ndarray) -> str:
    """The colour of a text, `black` or `white`, that is easy to read on a background.

    Args:
      colour: the colour of the background: red, green, blue and alpha, each in [0, 1].
    """
    red, green, blue, _ = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _distinct_values(means: Sequence[marginals.Marginal], position: int) -> dict[str, Any]:
    """The different values of one key, sorted, as a dict from the repr of a value to the value.

    The keys of the dict are reprs, because a list such as the value of corpus.split can't be a key of a dict.

    Args:
      position: the position of the config key in `Marginal.value`.
    """
    ordered = sorted((mean.value[position] for mean in means), key=tables.sort_key)
    return {repr(value): value for value in ordered}


def _label(group: tables.Group, keys: Sequence[str]) -> str:
    """A short text for the legend: the values of these config keys in the group, and the number of seeds."""
    text = ", ".join(f"{config_keys.short(key)} {_value_label(key, group.config.get(key))}" for key in keys) or group.name
    seeds = f" ({len(group.averaged)} seeds)" if len(group.averaged) > 1 else ""
    return (text if len(text) <= 60 else text[:57] + "…").replace("$", r"\$") + seeds


def _value_label(key: str, value: object) -> str:
    """The text of a value. A path is shortened to its last two parts, because its end says more than its beginning."""
    is_path = key in config_keys.SHOWN_BY_LAST_PART and value
    return "/".join(pathlib.PurePath(str(value)).parts[-2:]) if is_path else tables.value_text(value)


def _plain_ticks(axis: Axis) -> None:
    """Labels the ticks with plain numbers, such as 4, 5 and 6, not with powers of ten."""
    for which in ("major", "minor"):
        getattr(axis, f"set_{which}_formatter")(FuncFormatter(lambda value, _: f"{value:g}"))
