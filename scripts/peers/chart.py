"""Draws how many times as fast charlm is as the other libraries, as bars.

The background of the image is white in every theme of a page, so the dark text can always be read.
"""

import io
import math
import pathlib

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peers import measuring
from peers.measuring import COMPARISONS, Measurement
from peers.results import Results

from charlm import files
from charlm.errors import UserError

COLUMNS = 3  # panels in a row
TASKS = {"train": "training", "evaluate": "evaluation", "sample": "sampling"}
UNITS = {"evaluate": ("lane", "lanes"), "sample": ("text", "texts")}  # what the batch size of a task counts
NAMES = {"torch": "PyTorch", "keras": "Keras", "flax": "Flax", "torch-bf16": "PyTorch, both in bfloat16"}
COLOURS = {"torch": "#0072b2", "keras": "#e69f00", "flax": "#009e73", "torch-bf16": "#56b4e9"}  # Okabe and Ito 2008


def write(file: str, results: Results) -> None:
    """Draws one panel for each task, cell and batch size, with a group of bars for each shape.

    The height of a bar is the ratio of the medians over the rounds. The thin line on a bar goes from the lowest to the highest
    ratio of a single round.

    Args:
      file: a name that ends in .png or .svg.

    Raises:
      UserError: no speed of charlm can be compared with another speed, or the file can't be written.
    """
    measured = results.measurements
    kinds = {
        kind: groups
        for kind, groups in measuring.kinds(measured).items()
        if any(measuring.ratio(measured, group, *pair) for group in groups for pair in COMPARISONS)
    }
    if not kinds:
        raise UserError(f"--plot={file}: charlm and another library must be measured on the same task to draw their ratio.")
    columns = min(COLUMNS, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure = Figure(figsize=(max(5.0, 3.2 * columns), 0.9 + 2.4 * rows), layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    pairs = [pair for pair in COMPARISONS if any(row.implementation == pair[1] for row in measured)]
    for panel, (kind, groups) in zip(panels, kinds.items(), strict=False):
        _draw(panel, _title(*kind), groups, pairs, measured)
    for panel in list(figure.axes)[len(kinds) :]:
        panel.remove()
    for row in range(rows):
        figure.axes[row * columns].set_ylabel("times as fast")
    handles = [matplotlib.patches.Patch(color=COLOURS[other], label=NAMES[other]) for _, other in pairs]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    cores, processor = results.machine["cores"], results.machine["processor"]
    figure.suptitle(f"Speed of charlm relative to other libraries, {cores} cores of {processor}", fontsize=9)
    image, suffix = io.BytesIO(), pathlib.Path(file).suffix[1:]
    # Without these settings, an SVG file would have the time and random names, and would differ each time it is drawn.
    with matplotlib.rc_context({"svg.hashsalt": "charlm"}):
        figure.savefig(image, dpi=150, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
    files.write_output("plot", pathlib.Path(file), image.getvalue())


def _title(task: str, cell: str, batch: int) -> str:
    unit = f", {batch} {UNITS[task][batch > 1]}" if batch else ""
    return f"{TASKS[task]}, {cell.upper()}{unit}"


def _draw(axis: Axes, title: str, groups: list[tuple], pairs: list[tuple[str, str]], measured: list[Measurement]) -> None:
    width, highest = 0.8 / len(pairs), 1.0
    for number, (ours, other) in enumerate(pairs):
        for place, group in enumerate(groups):
            ratio = measuring.ratio(measured, group, ours, other)
            if ratio is None:
                continue
            x = place + (number - (len(pairs) - 1) / 2) * width
            axis.bar(x, ratio.median, width * 0.92, color=COLOURS[other])
            axis.vlines(x, ratio.lowest, ratio.highest, color="black", linewidth=0.8)
            highest = max(highest, ratio.median, ratio.highest)
            label = f"{ratio.median:.1f}" if ratio.median >= 10 else f"{ratio.median:.2f}"
            top = max(ratio.median, ratio.highest)
            axis.annotate(label, (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=6)
    axis.axhline(1, color="black", linewidth=0.8, linestyle=(0, (4, 3)))
    axis.set_xticks(range(len(groups)), [shape for _, _, shape, _ in groups], fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_ylim(0, 1.12 * highest)
    axis.set_title(title, fontsize=9)
    axis.grid(True, axis="y", alpha=0.2)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
