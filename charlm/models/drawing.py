"""Draws a network unrolled in time with Graphviz, like the figure in MXNet.jl's char-lstm tutorial."""

import itertools
import pathlib
import shutil
import subprocess

from charlm import files
from charlm.errors import Failure, UserError


def unrolled(
    cell: str,
    state: str,
    layers: int,
    hidden: int,
    encoding: str,
    dropout: tuple[float, ...],
    steps: int,
    last_only: bool = False,
) -> str:
    """The Graphviz text of a network over `steps` characters.

    Ids are at the bottom and predictions at the top. Time runs from left to right.

    Args:
      cell: title of the recurrent cell.
      state: title of the cell's state. The title labels the arrows between steps.
      encoding: name of the input encoding, such as `onehot`.
      dropout: fractions of the values that are dropped: before the first layer, and after each layer.
      steps: number of characters in the drawing.
      last_only: True if only the last step predicts a character. This is so with the framing `windows`.
    """
    lines = [
        "digraph network {",
        '  rankdir=BT; node [shape=box, style=rounded, fontname="sans-serif"]; edge [arrowsize=0.6];',
    ]
    for step in range(1, steps + 1):
        column = [f"id_{step}", f"input_{step}"]
        lines.append(f'  id_{step} [label="char {step}", shape=plaintext];')
        lines.append(f'  input_{step} [label="{encoding}"];')
        if dropout[0] > 0:
            lines.append(f'  dropout_0_{step} [label="dropout {dropout[0]:g}"];')
            column.append(f"dropout_0_{step}")
        for layer in range(1, layers + 1):
            lines.append(
                f'  layer_{layer}_{step} [label="{cell} {layer}\\n{hidden}", style="rounded,filled", fillcolor="#dde8f5"];'
            )
            column.append(f"layer_{layer}_{step}")
            if dropout[layer] > 0 and not (last_only and layer == layers and step < steps):
                lines.append(f'  dropout_{layer}_{step} [label="dropout {dropout[layer]:g}"];')
                column.append(f"dropout_{layer}_{step}")
        if step == steps or not last_only:
            lines.append(f'  head_{step} [label="softmax"];')
            lines.append(f'  next_{step} [label="p(char {step + 1})", shape=plaintext];')
            column += [f"head_{step}", f"next_{step}"]
        lines.append(f"  {' -> '.join(column)};")
    for layer in range(1, layers + 1):
        row = [f"layer_{layer}_{step}" for step in range(1, steps + 1)]
        lines.append(f"  {{ rank=same; {'; '.join(row)}; }}")
        for before, after in itertools.pairwise(row):
            lines.append(f'  {before} -> {after} [label="{state}", fontsize=9, constraint=false];')
    return "\n".join([*lines, "}"]) + "\n"


def write(dot: str, file: str) -> list[str]:
    """Writes the Graphviz text to `file`. If Graphviz is installed, also writes an SVG file. Returns the written files.

    Both files are in the same folder and have the same name, except for the suffix. If `file` ends in .svg, the Graphviz text
    is written to a file that ends in .dot instead.

    Raises:
      UserError: the file can't be written.
      Failure: Graphviz fails.
    """
    path = pathlib.Path(file)
    path = path.with_suffix(".dot") if path.suffix == ".svg" else path
    try:
        files.write(path, dot)
    except OSError as error:
        raise UserError(f"--graph={file} can't be written ({error.strerror}): choose another file.") from error
    if shutil.which("dot") is None:
        return [str(path)]
    picture = path.with_suffix(".svg")
    made = subprocess.run(["dot", "-Tsvg", f"-o{picture}", str(path)], capture_output=True, text=True, errors="replace")
    if made.returncode:
        why = next(iter(made.stderr.splitlines()), f"status {made.returncode}")[:200]
        raise Failure(f"{path} was written, but Graphviz could not make {picture} from it ({why}).")
    return [str(path), str(picture)]
