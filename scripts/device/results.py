"""Writes the results of all parts to a JSON file, and prints them as tables. Does not import JAX."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from charlm import files
from charlm.progress import counted, duration
from charlm.rundir import environment
from device.parts import PARTS
from device.running import ROOT, Outcome

WIDTH = 150  # of tables that do not go to a terminal
Figures = list[dict[str, Any]]


class Results:
    """All results so far. The file is written again after each part."""

    def __init__(self, file: pathlib.Path, device: Mapping[str, Any], minutes: float):
        described = environment.entry(device_in_words(device), 0, 0, None, 0)
        self._file = file
        self._outcomes: list[Outcome] = []
        self._head = {
            "device": dict(device),
            **{name: described[name] for name in ("time", "command", "directory", "commit", "machine", "XLA_FLAGS")},
            "sources_sha256": _digest_of_sources(),
            "minutes": minutes,
        }
        self._write()

    def add(self, outcome: Outcome) -> None:
        """Adds the result of a part, and writes the file.

        Raises:
          OSError: the file can't be written.
        """
        self._outcomes.append(outcome)
        self._write()

    def wrong(self) -> list[str]:
        """A line for everything that is wrong."""
        return [line for outcome in self._outcomes for line in outcome.wrong]

    def print_tables(self) -> None:
        """Prints a table of the parts, and the figures of each part."""
        console = Console(markup=False, highlight=False)
        if not console.is_terminal:
            console.width = WIDTH
        figures = {outcome.part: outcome.figures for outcome in self._outcomes}
        tables = [_parts(self._outcomes), _accuracy(figures.get("accuracy", []))]
        tables += [_speed([*figures.get("speed", []), *figures.get("torch", [])])]
        others = ("resume", "checkpoint", "training", "packed", "devices")
        tables += [_plain(part, figures.get(part, [])) for part in others]
        for table in tables:
            if table.row_count:
                console.print()
                console.print(table)
        console.print()

    def _write(self) -> None:
        parts = {outcome.part: outcome._asdict() for outcome in self._outcomes}
        files.write(self._file, json.dumps(self._head | {"parts": parts}, indent=1) + "\n")


def device_in_words(device: Mapping[str, Any]) -> str:
    """The device, such as `1 gpu device (NVIDIA H200)`, and the version of jaxlib."""
    kind = "" if device["kind"] == device["platform"] else f" ({device['kind']})"
    return f"{counted(device['count'], device['platform'] + ' device')}{kind}, jaxlib {device['versions']['jaxlib']}"


def in_words(outcome: Outcome) -> str:
    """The result of a part in a line."""
    parts = [outcome.status + (f" ({outcome.reason})" if outcome.reason else ""), duration(outcome.seconds)]
    parts += [counted(len(outcome.wrong), "wrong result")] if outcome.wrong else []
    parts += [f"no time for {counted(len(outcome.left_out), 'measurement')}"] if outcome.left_out else []
    return ", ".join(parts)


def _digest_of_sources() -> str:
    """Tells the version of charlm if the checkout has no Git repository."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "charlm").rglob("*.py")):
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _parts(outcomes: Iterable[Outcome]) -> Table:
    table = _table("Parts", ["part", "result", "time", "what it checks", "note"], numbers=("time",))
    for outcome in outcomes:
        left_out = f"no time for: {', '.join(outcome.left_out)}" if outcome.left_out else ""
        note = "; ".join(filter(None, [outcome.reason, left_out]))
        table.add_row(outcome.part, outcome.status, duration(outcome.seconds), PARTS[outcome.part].about, note)
    return table


def _accuracy(figures: Figures) -> Table:
    """The error of each case, each with the precision of its products."""
    errors = ("loss", "gradient", "step", "evaluation", "sample")
    table = _table("Differences from NumPy in float64", ["cell", "kernel", "precision", "input", "unroll", *errors], errors)
    for figure in figures:
        names = [str(figure[name]) for name in ("cell", "kernel", "precision", "input", "unroll")]
        table.add_row(*names, *(f"{figure[name]:.1e}" for name in errors))
    return table


def _speed(figures: Figures) -> Table:
    """Speed and memory of each variant, sorted by the size of the network, the fastest variant first."""
    numbers = ("chars/s", "spread", "x torch", "TFLOP/s", "first call", "first step", "memory")
    table = _table("Training steps", ["size", "library", "variant", *numbers], numbers)
    order = ["S", "M", "L", "XL"]
    for figure in sorted(figures, key=lambda figure: (order.index(figure["shape"]), -figure["chars_per_second"])):
        torch = [
            other["chars_per_second"]
            for other in figures
            if other["library"] == "torch" and other["shape"] == figure["shape"] and _is_16_bit(other) == _is_16_bit(figure)
        ]
        table.add_row(
            figure["shape"],
            figure["library"],
            figure["variant"],
            f"{figure['chars_per_second']:,.0f}",
            f"{figure['spread']:.0%}",
            f"{figure['chars_per_second'] / max(torch):.2f}" if torch else "",
            f"{figure['tflop_per_second']:.2f}",
            f"{figure['first_call_seconds']:.1f} s",
            f"{figure['seconds_to_first_step']:.1f} s",
            f"{figure['peak_bytes'] / 1e6:,.0f} MB",
        )
    return table


def _is_16_bit(figure: Mapping[str, Any]) -> bool:
    return figure["variant"].startswith(("bfloat16", "float16"))


def _plain(part: str, figures: Figures) -> Table:
    """A table with a line for each figure of a part."""
    table = _table(part.capitalize(), ["figure", "value"], ())
    for figure in figures:
        for name, value in figure.items():
            table.add_row(name.replace("_", " "), _text(value))
        table.add_section()
    return table


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return ", ".join(map(str, value)) or "nothing" if isinstance(value, list) else str(value)


def _table(title: str, columns: Iterable[str], numbers: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    return table
