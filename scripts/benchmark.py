"""Compares how fast charlm, PyTorch, Keras and plain Flax train and sample on this machine.

    scripts/benchmark.py --peer_python torch=/path/to/python --peer_python keras=/path/to/python [--json=FILE]
        [--cell=lstm] [--tasks=train,sample] [--shapes=S,M,L] [--implementations=charlm,torch] [--sample_batches=1,64]
        [--rounds=5] [--seconds=2]

An implementation is a library and a data type, such as torch-bf16. --peer_python gives the Python interpreter of an environment
in which the library is installed.

Networks of three sizes are measured. The sizes are called shapes:

    S: one-hot input, 2 LSTM layers of 128, training batches of 50 rows x 50 characters
    M: an embedding of 256, 2 LSTM layers of 256, training batches of 32 rows x 32 characters
    L: one-hot input, 2 LSTM layers of 512, training batches of 128 rows x 100 characters

With --cell=gru or --cell=rnn, the layers are GRU layers or tanh RNN layers of the same sizes.

A training step is a forward pass, a backward pass, gradient clipping by global norm, and an Adam update. Sampling is measured
at temperature 0.8. The measured time includes the network and the drawing of each character.

The table shows the median speed over all rounds, the spread of the speed, the ratio to the speed of PyTorch, and peak memory.
The spread is the difference between the fastest and the slowest round, divided by the median. For training, the table also
shows the speed as a percentage of a limit. The limit is the speed that training would have if only matrix products took time.

If the library of an implementation is not installed, the program prints a note and skips the implementation. If an
implementation fails, the table leaves out the implementation, and the exit status is 1. The whole benchmark takes half an hour
on 2 cores.
"""

import json

from absl import flags
from peers import measuring

from charlm import cli
from charlm.errors import Failure, UserError

_PEER_PYTHON = flags.DEFINE_multi_string(
    "peer_python", [], "Python interpreter that has the library: torch=/path/to/python, keras=... or flax=..."
)
_CELL = flags.DEFINE_string("cell", "lstm", "recurrent cell of all networks: lstm, gru or rnn")
_TASKS = flags.DEFINE_list("tasks", ["train", "sample"], "tasks to measure: train, sample")
_SHAPES = flags.DEFINE_list("shapes", list(measuring.SHAPES), "shapes to measure: S, M, L")
_IMPLEMENTATIONS = flags.DEFINE_list("implementations", list(measuring.IMPLEMENTATIONS), "implementations to measure")
_SAMPLE_BATCHES = flags.DEFINE_list("sample_batches", ["1", "64"], "batch sizes of sampling")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "number of rounds; each round measures every implementation once")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "duration of each measurement in seconds")
_JSON = flags.DEFINE_string("json", None, "file for the results, as a list of JSON objects")


def main(overrides: dict[str, str]) -> None:
    del overrides
    pythons, sample_batches = _check_flags()
    names, missing = measuring.available(_IMPLEMENTATIONS.value, pythons)
    for name, why in missing.items():
        print(f"skipped {name}: {why}.", flush=True)
    if not names:
        raise Failure("none of the implementations can be measured.")
    measured, failures = [], []
    for task in _TASKS.value:
        for shape in _SHAPES.value:
            for batch in [measuring.SHAPES[shape].batch] if task == "train" else sample_batches:
                try:
                    flags_of_round = (_ROUNDS.value, _SECONDS.value, _tell, _CELL.value)
                    for row in measuring.measure(task, shape, batch, names, pythons, *flags_of_round):
                        measured.append(row)
                except Failure as failure:  # keep the results of the other implementations
                    failures.append(str(failure))
                if _JSON.value is not None:  # write after each task, shape and batch size; an interruption then loses little
                    with open(_JSON.value, "w", encoding="utf-8") as file:
                        json.dump([row._asdict() for row in measured], file, indent=1)
    _print_table(measuring.table(measured))
    print(*measuring.means(measured), sep="\n")
    if failures:
        raise Failure("; ".join(failures))


def _check_flags() -> tuple[dict[str, str], list[int]]:
    """Checks all flags. Raises a UserError for the first wrong flag.

    Returns:
      The Python interpreter of each library in --peer_python, and the batch sizes of sampling.
    """
    for flag, known in (
        (_TASKS, ("train", "sample")),
        (_SHAPES, measuring.SHAPES),
        (_IMPLEMENTATIONS, measuring.IMPLEMENTATIONS),
    ):
        for value in flag.value:
            if value not in known:
                raise UserError(f"--{flag.name}={value}: must be one of {', '.join(known)}.")
        if not flag.value:
            raise UserError(f"--{flag.name}= is empty: give at least one of {', '.join(known)}.")
    if _CELL.value not in measuring.GATES:
        raise UserError(f"--cell={_CELL.value}: must be one of {', '.join(measuring.GATES)}.")
    if _ROUNDS.value < 1:
        raise UserError(f"--rounds={_ROUNDS.value}: must be positive.")
    if not 0 < _SECONDS.value < float("inf"):
        raise UserError(f"--seconds={_SECONDS.value}: must be positive.")
    if not all(value.isdecimal() and int(value) > 0 for value in _SAMPLE_BATCHES.value):
        raise UserError(f"--sample_batches={','.join(_SAMPLE_BATCHES.value)}: must be positive integers.")
    pythons = {}
    for value in _PEER_PYTHON.value:
        name, equals, python = value.partition("=")
        if name not in ("flax", "keras", "torch") or not equals or not python:
            raise UserError(f"--peer_python={value}: must be torch=/path/to/python (or keras=, flax=).")
        pythons[name] = python
    return pythons, [int(value) for value in _SAMPLE_BATCHES.value]


def _tell(line: str) -> None:
    print(line, flush=True)


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left, right = row[:4], row[4:]
        cells = [cell.ljust(width) for cell, width in zip(left, widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(right, widths[4:], strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    cli.run(main)
