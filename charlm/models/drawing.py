"""Draws a network unrolled in time with Graphviz, like the figure in MXNet.jl's char-lstm tutorial."""

import itertools
import pathlib
import shutil
import subprocess

from charlm import files
from charlm.errors import Failure, UserError
from charlm.models.blocks import Shape


def unrolled(shape: Shape, steps: int, last_only: bool = False) -> str:
    """The Graphviz text of a network over `steps` characters.

    Ids are at the bottom and predictions at the top. Time runs from left to right. A dashed arrow is a skip connection.

    Args:
      shape: the layers, the input encoding, the dropout and the head.
      steps: number of characters in the drawing.
      last_only: whether only the last step predicts a character, as with the framing `windows`.
    """
    lines = [
        "digraph network {",
        '  rankdir=BT; node [shape=box, style=rounded, fontname="sans-serif"]; edge [arrowsize=0.6];',
    ]
    rates = shape.regularisers.dropout(len(shape.blocks))
    for step in range(1, steps + 1):
        column = [f"id_{step}", f"input_{step}"]
        lines.append(f'  id_{step} [label="char {step}", shape=plaintext];')
        lines.append(f'  input_{step} [label="{shape.encoding}"];')
        if rates[0] > 0:
            column.append(_node(lines, f"dropout_0_{step}", f"dropout {rates[0]:g}"))
        for layer, block in enumerate(shape.blocks, start=1):
            is_used = step == steps or not (last_only and layer == len(shape.blocks))  # whether the head reads the output
            before = column[-1]
            if block.norm:
                column.append(_node(lines, f"norm_{layer}_{step}", "RMSNorm"))
            style = 'style="rounded,filled", fillcolor="#dde8f5"'
            column.append(_node(lines, f"layer_{layer}_{step}", f"{block.cell.title} {layer}\\n{block.width}", style))
            if rates[layer] > 0 and is_used:
                column.append(_node(lines, f"dropout_{layer}_{step}", f"dropout {rates[layer]:g}"))
            if block.skip and is_used:
                column.append(_node(lines, f"sum_{layer}_{step}", "+", "shape=circle"))
                lines.append(f"  {before} -> {column[-1]} [style=dashed];")
            if block.mlp and is_used:
                before = column[-1]
                column.append(_node(lines, f"mlp_{layer}_{step}", f"feed-forward\\n{block.mlp}"))
                if rates[layer] > 0:
                    column.append(_node(lines, f"mlp_dropout_{layer}_{step}", f"dropout {rates[layer]:g}"))
                column.append(_node(lines, f"mlp_sum_{layer}_{step}", "+", "shape=circle"))
                lines.append(f"  {before} -> {column[-1]} [style=dashed];")
        if step == steps or not last_only:
            if shape.norm:
                column.append(_node(lines, f"norm_head_{step}", "RMSNorm"))
            column.append(_node(lines, f"head_{step}", "softmax\\ntied to the embedding" if shape.tie else "softmax"))
            column.append(_node(lines, f"next_{step}", f"p(char {step + 1})", "shape=plaintext"))
        lines.append(f"  {' -> '.join(column)};")
    for layer, block in enumerate(shape.blocks, start=1):
        row = [f"layer_{layer}_{step}" for step in range(1, steps + 1)]
        lines.append(f"  {{ rank=same; {'; '.join(row)}; }}")
        for before, after in itertools.pairwise(row):
            lines.append(f'  {before} -> {after} [label="{block.cell.state_title}", fontsize=9, constraint=false];')
    return "\n".join([*lines, "}"]) + "\n"


def _node(lines: list[str], name: str, label: str, style: str = "") -> str:
    """Adds a line for a node. Returns the node's name."""
    lines.append(f'  {name} [label="{label}"{", " if style else ""}{style}];')
    return name


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
