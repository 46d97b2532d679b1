"""Trains the model of a config into a run directory, or goes on with the run that is there.

    scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.model.hidden=512 ...]
    scripts/train.py --config=configs/quickstart.py --describe [--graph=network.dot] [--graph_steps=3]

Every key of configs/base.py can be set by --config.KEY=VALUE. The same command again resumes a run that was stopped or killed
and says so where it is done. Ctrl-C saves a checkpoint first. --describe trains nothing: it prints data, parameters and length,
and writes the unrolled network as Graphviz dot, and as SVG where Graphviz is installed. Exit status: 0 done, 1 diverged or
failed, 2 a mistake in the command, 130 or 143 stopped and resumable.
"""

import signal

from absl import flags

from charlm import cli, progress
from charlm.config import keys, load
from charlm.data import batches
from charlm.errors import UserError
from charlm.hardware import cache, devices, processes

_CONFIG = flags.DEFINE_string(
    "config", None, "recipe or config file, with its argument if it takes one: NAME[:ARG] or FILE.py[:ARG]", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory: made, or resumed if it is there")
_DESCRIBE = flags.DEFINE_bool("describe", False, "print what would be trained and draw it, instead of training")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "train together with the other tasks of this step of SLURM's")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of several processes that train together")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "of several processes: how many")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "of several processes: which this is, from 0; 0 writes the run directory"
)
_GRAPH = flags.DEFINE_string("graph", "network.dot", "of --describe: file for the picture of the network")
_GRAPH_STEPS = flags.DEFINE_integer("graph_steps", 3, "of --describe: characters in the picture")


def run() -> None:
    cli.run(main, keys.help_text)


def main(overrides: dict[str, str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until train listens: JAX, while it starts, may swallow a KeyboardInterrupt
    checked = load.load(_CONFIG.value, overrides)
    if _GRAPH_STEPS.value < 1:
        raise UserError(f"--graph_steps={_GRAPH_STEPS.value} is not right: it must be 1 or more.")
    if not _DESCRIBE.value and _WORKDIR.value is None:
        raise UserError("--workdir is not given: see --help.")
    spec = processes.spec_from_flags(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    rows = batches.Framing.of(checked).rows
    if rows % spec.num_processes:
        raise UserError(
            f"batch.size={rows} can't be shared evenly by {spec.num_processes} processes: a multiple would be right."
        )
    devices.use_huge_pages()
    for line in devices.prepare_cpu(checked, rows, spec.num_processes):
        if spec.process_id == 0:
            progress.tell(line)
    cache.keep_compiled(cache.folder_of(checked))  # this imports JAX, which takes a second: only once the command is right
    from charlm.training import setup, train

    processes.join(spec)
    if _DESCRIBE.value:
        return setup.describe_only(checked, _GRAPH.value, _GRAPH_STEPS.value)
    return train.train(checked, _WORKDIR.value)
