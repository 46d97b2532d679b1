"""Tests that a table fits a terminal without broken words, and that it has all columns in a pipe."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest
from test_tables import make_run

from charlm.compare import layout


def words_of(lines):
    return {word for line in lines for word in line.split()}


WIDE_TABLE = (
    ["model.hidden", "corpus.path", "train.best", "optim.name", "corpus.name", "perplexity", "nats", "best", "state", "run"],
    [
        [
            "512",
            "/some/folder/a.txt",
            "train",
            "adamw",
            "文字",
            "12.3456 ± 0.1234",
            "2.5123",
            "12.3456",
            "done",
            "x,hidden=512",
        ],
        ["8", "/some/folder/b.txt", "validation", "sgd", "a", "4.1 ± 0.1", "1.4", "4.1", "2 done, 1 failed", "y,hidden=8"],
    ],
)


@pytest.mark.parametrize("width", [1, 20, 60, 80, 100, 120, 160])
def test_a_table_in_a_terminal_fits_the_width_and_names_the_columns_that_are_left_out(width):
    header, rows = WIDE_TABLE
    order = ["perplexity", "state", *header]
    lines, left_out = layout.fitted(header, rows, list(dict.fromkeys(order)), width)
    # A Chinese character is as wide as two letters.
    widths = [sum(2 if "一" <= character <= "鿿" else 1 for character in line) for line in lines]
    assert max(widths) <= max(width, len("12.3456 ± 0.1234"))
    whole = words_of(layout.lines(header, rows)) | {"hidden", "path", "a.txt", "b.txt"}
    assert words_of(lines) <= whole
    assert len(lines) == 3
    short = {"model.hidden": "hidden", "corpus.path": "path"}  # `best` is another column, so train.best keeps its name
    shown = [name for name in header if name not in left_out]
    assert "perplexity" in shown
    names = shown if width >= 136 else [short.get(name, name) for name in shown]
    assert lines[0].split() == names
    # All columns together are 136 characters wide. With short names of keys, and with file names in place of paths, all
    # columns together are 117 characters wide.
    assert left_out == {160: [], 120: [], 100: ["best", "run"]}.get(width, left_out)
    assert (len(left_out) > 0) == (width <= 100)


def test_compare_fits_the_terminal_and_prints_all_columns_in_a_pipe(script, tmp_path):
    for hidden in (8, 16):
        make_run(
            tmp_path / ("a_long_name_of_a_run_" * 3 + str(hidden)), {"model.hidden": hidden, "optim.learning_rate": 1 / hidden}
        )
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    env = {name: value for name, value in script.env().items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    process = subprocess.Popen(script.command("compare", tmp_path), stdout=terminal, stderr=subprocess.PIPE, env=env)
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):  # Linux raises EIO at the end of a pseudo-terminal
        while part := os.read(main, 2**16):
            output += part
    os.close(main)
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    text = re.sub(r"\[[0-9;]*m", "", output.decode())
    assert max(map(len, text.splitlines())) <= 60
    header, *rows = (line.split() for line in text.splitlines()[2:5])  # the two lines above describe the protocol
    assert header[:4] == ["hidden", "learning_rate", "perplexity", "nats"]
    assert [row[:4] for row in rows] == [[h, r, "4.4817", "1.5000"] for h, r in (("16", "0.0625"), ("8", "0.125"))]
    left_out = " ".join(text.split()).partition("left out, because the terminal is too narrow: ")[2]
    assert "chars/s, time, run" in left_out
    assert "train:" not in left_out  # only the columns that are shown are explained
    piped = script("compare", tmp_path).stdout
    assert "a_long_name_of_a_run_" * 3 + "16" in piped
    assert "left out" not in piped
    assert "last: perplexity at the latest evaluation" in piped
