"""Compares how fast charlm, PyTorch, Keras and plain Flax train, evaluate and sample on this machine.

    scripts/benchmark.py --peer_python torch=/path/to/python --peer_python keras=/path/to/python [--json=FILE] [--plot=FILE.svg]
        [--tasks=train,train:gru,evaluate,sample] [--shapes=S,M,L] [--implementations=charlm,torch] [--lanes=1,64]
        [--sample_batches=1,64] [--rounds=5] [--seconds=2]
    scripts/benchmark.py --from=FILE.json [--from=FILE.json] [--plot=FILE.svg]

An implementation is a library and a data type, such as torch-bf16. --peer_python gives the Python interpreter of an environment
in which the library is installed.

Networks of three sizes are measured. The sizes are called shapes:

    S: one-hot input, 2 LSTM layers of 128, training batches of 50 rows x 50 characters
    M: an embedding of 256, 2 LSTM layers of 256, training batches of 32 rows x 32 characters
    L: one-hot input, 2 LSTM layers of 512, training batches of 128 rows x 100 characters

A task can have a cell after a colon: with train:gru or train:rnn, the layers are GRU layers or tanh RNN layers of the same
sizes.

A training step is a forward pass, a backward pass, gradient clipping by global norm, and an Adam update. An evaluation computes
the loss of a text. It reads the text in one or more lanes, and carries the recurrent state through each lane. Sampling is
measured at temperature 0.8. The measured time includes the network and the drawing of each character.

The table shows the median speed over all rounds, the spread of the speed, the ratio to the speed of PyTorch, and peak memory.
The spread is the difference between the fastest and the slowest round, divided by the median. For training, the table also
shows the speed as a percentage of a limit. The limit is the speed that training would have if only matrix products took time.

--json writes all results with a description of the machine. --plot draws the speed of charlm relative to the other libraries.
--from prints and draws results that --json has written, and measures nothing.

If the library of an implementation is not installed, the program prints a note and skips the implementation. If an
implementation fails, the table leaves out the implementation, and the exit status is 1. The whole benchmark takes an hour on 2
cores.
"""

import datetime
import pathlib

from absl import flags
from peers import measuring, results

from charlm import cli, files
from charlm.errors import Failure, UserError
from charlm.rundir import environment

_PEER_PYTHON = flags.DEFINE_multi_string(
    "peer_python", [], "Python interpreter that has the library: torch=/path/to/python, keras=... or flax=..."
)
_TASKS = flags.DEFINE_list(
    "tasks",
    ["train", "train:gru", "evaluate", "sample"],
    "tasks to measure: train, evaluate, sample; a cell can follow after a colon: lstm (default), gru or rnn",
)
_SHAPES = flags.DEFINE_list("shapes", list(measuring.SHAPES), "shapes to measure: S, M, L")
_IMPLEMENTATIONS = flags.DEFINE_list("implementations", list(measuring.IMPLEMENTATIONS), "implementations to measure")
_LANES = flags.DEFINE_list("lanes", ["1", "64"], "numbers of lanes of evaluations")
_SAMPLE_BATCHES = flags.DEFINE_list("sample_batches", ["1", "64"], "batch sizes of sampling")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "number of rounds; each round measures every implementation once")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "duration of each measurement in seconds")
_JSON = flags.DEFINE_string("json", None, "file for the results")
_PLOT = flags.DEFINE_string("plot", None, ".png or .svg file for a bar chart of charlm's speed relative to the other libraries")
_FROM = flags.DEFINE_multi_string(
    "from", [], "file of --json; its results are printed and drawn, and nothing is measured. Can be given several times"
)


def main(overrides: dict[str, str]) -> None:
    del overrides
    pythons = _check_flags()
    failures: list[str] = []
    found = results.joined(_FROM.value) if _FROM.value else _measure(pythons, failures)
    print(results.machine_line(found))
    _print_table(measuring.table(found.measurements))
    print(*measuring.means(found.measurements), sep="\n")
    if _PLOT.value is not None:
        from peers import chart  # imported only if needed, because importing Matplotlib is slow

        chart.write(_PLOT.value, found)
        print(f"written: {_PLOT.value}")
    if failures:
        raise Failure("; ".join(failures))


def _measure(pythons: dict[str, str], failures: list[str]) -> results.Results:
    """Measures all groups that the flags choose. Adds a message for each group with an error to `failures`."""
    versions, missing = measuring.available(_IMPLEMENTATIONS.value, pythons)
    for name, why in missing.items():
        print(f"skipped {name}: {why}.", flush=True)
    if not versions:
        raise Failure("none of the implementations can be measured.")
    found = results.Results(
        machine=measuring.machine(),
        commit=environment.commit(),
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions,
        seconds=_SECONDS.value,
        measurements=[],
    )
    for task, cell in map(_task_and_cell, _TASKS.value):
        for shape in _SHAPES.value:
            for batch in _batches(task, shape):
                try:
                    flags_of_round = (_ROUNDS.value, _SECONDS.value, _tell, cell)
                    for row in measuring.measure(task, shape, batch, versions, pythons, *flags_of_round):
                        found.measurements.append(row)
                except Failure as failure:  # keep the results of the other implementations
                    failures.append(str(failure))
                if _JSON.value is not None:  # write after each group; an interruption then loses little
                    files.write_output("json", pathlib.Path(_JSON.value), results.as_json(found))
    return found


def _task_and_cell(text: str) -> tuple[str, str]:
    task, _, cell = text.partition(":")
    return task, cell or "lstm"


def _batches(task: str, shape: str) -> list[int]:
    if task == "train":
        return [measuring.SHAPES[shape].batch]
    return [int(value) for value in (_LANES if task == "evaluate" else _SAMPLE_BATCHES).value]


def _check_flags() -> dict[str, str]:
    """Returns the Python interpreter of each library in --peer_python. Raises a UserError for the first wrong flag."""
    for flag, known in (
        (_TASKS, measuring.TASKS),
        (_SHAPES, measuring.SHAPES),
        (_IMPLEMENTATIONS, measuring.IMPLEMENTATIONS),
    ):
        for value in flag.value:
            name, colon, cell = value.partition(":") if flag is _TASKS else (value, "", "")
            if name not in known:
                raise UserError(f"--{flag.name}={value}: must be one of {', '.join(known)}.")
            if colon and cell not in measuring.GATES:
                raise UserError(f"--tasks={value}: the cell after the colon must be one of {', '.join(measuring.GATES)}.")
        if not flag.value:
            raise UserError(f"--{flag.name}= is empty: give at least one of {', '.join(known)}.")
    if _ROUNDS.value < 1:
        raise UserError(f"--rounds={_ROUNDS.value}: must be positive.")
    if not 0 < _SECONDS.value < float("inf"):
        raise UserError(f"--seconds={_SECONDS.value}: must be positive.")
    for flag in (_LANES, _SAMPLE_BATCHES):
        if not flag.value or not all(value.isdecimal() and int(value) > 0 for value in flag.value):
            raise UserError(f"--{flag.name}={','.join(flag.value)}: must be positive integers.")
    for name, flag, suffixes in (("json", _JSON, [".json"]), ("plot", _PLOT, [".png", ".svg"])):
        if flag.value is not None:
            files.check_output(name, flag.value, suffixes)
    if _FROM.value and _JSON.value is not None:
        raise UserError("--from and --json are given together: --from measures nothing, so leave out --json.")
    pythons = {}
    for value in _PEER_PYTHON.value:
        name, equals, python = value.partition("=")
        if name not in ("flax", "keras", "torch") or not equals or not python:
            raise UserError(f"--peer_python={value}: must be torch=/path/to/python (or keras=, flax=).")
        pythons[name] = python
    return pythons


def _tell(line: str) -> None:
    print(line, flush=True)


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left, right = row[:5], row[5:]
        cells = [cell.ljust(width) for cell, width in zip(left, widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(right, widths[5:], strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    cli.run(main)
