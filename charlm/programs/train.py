"""Trains the model of a config, and saves the run in a run directory. Also resumes a run.

    scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.model.hidden=512 ...]
    scripts/train.py --workdir=runs/quickstart
    scripts/train.py --workdir=runs/quickstart --extend --config.train.epochs=4
    scripts/train.py --config=configs/quickstart.py --describe [--graph=network.dot] [--graph_steps=3]
    scripts/train.py --helpkeys

--config.KEY=VALUE sets a key of the config. --helpkeys lists all keys.

If the run was stopped or killed, give the same command again, or only --workdir: it resumes the run. If the run is done, the
command only prints the result. After Ctrl-C, the program saves a checkpoint and ends.

Without --config, the program takes the config of the run in --workdir. When a run is resumed, you can change only how it logs,
evaluates, saves checkpoints and draws samples.

With --extend, you can also change the length of the run, its learning rate and its schedule, even if the run is done. Training
then continues from the latest checkpoint of the run.

With --describe, the program does not train. It prints a description of the data, the parameters and the length of the training.
It also draws the unrolled network as a Graphviz dot file. If Graphviz is installed, it draws an SVG file too.

Exit status:

    0: the run is done
    1: the run diverged or failed
    2: the command has a mistake
    130, 143: a signal stopped the run, and the same command resumes the run
"""

import os
import signal

from absl import flags
from ml_collections import ConfigDict

from charlm import cli
from charlm.config import help_keys, load
from charlm.errors import UserError
from charlm.hardware import devices, processes
from charlm.programs import model_flags
from charlm.rundir.run import Run
from charlm.training import start

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "recipe or config file, as NAME or FILE.py; if the config takes an argument, NAME:ARG or FILE.py:ARG; "
    "default: the config of the run in --workdir",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory; if the directory has a run, the run is resumed")
_EXTEND = flags.DEFINE_bool(
    "extend", False, "change or lengthen the run in --workdir, even if it is done, and continue its training"
)
_DESCRIBE = flags.DEFINE_bool("describe", False, "describe the training and draw the network, without training")
_VERBOSE = flags.DEFINE_bool(
    "verbose", False, "print the name and shape of every parameter, and the settings of XLA and the C library"
)
_ROWS = flags.DEFINE_bool(
    "rows",
    False,
    "on a terminal, also print the training loss every train.log_every steps; in a file or a pipe, it is always printed",
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "train one model together with the other tasks of this SLURM step")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "with several processes: HOST:PORT of process 0")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "with several processes: number of processes that train one model together"
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "with several processes: index of this process; process 0 writes the run directory"
)
_TRUST_CODE = model_flags.trust_code()
_GRAPH = flags.DEFINE_string("graph", "network.dot", "with --describe: file for the drawing of the network")
_GRAPH_STEPS = flags.DEFINE_integer("graph_steps", 3, "with --describe: number of time steps in the drawing")


def run() -> None:
    """Runs the program with the flags of the command line."""
    cli.run(main, help_keys.help_text)


def main(overrides: dict[str, str]) -> int:
    """Trains a model, or only describes the training. Returns the exit status."""
    # JAX may ignore a KeyboardInterrupt while JAX starts. With the system's default handler, Ctrl-C ends the program at once.
    # Later, the training installs its own signal handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    config = load.load(_CONFIG.value, overrides) if _CONFIG.value else _config_of_run(_WORKDIR.value, overrides)
    if _GRAPH_STEPS.value < 1:
        raise UserError(f"--graph_steps={_GRAPH_STEPS.value}: must be 1 or more.")
    workdir = _WORKDIR.value
    if not _DESCRIBE.value and workdir is None:
        raise UserError("--workdir is not given: see --help.")
    if _EXTEND.value and _DESCRIBE.value:
        raise UserError("--extend and --describe are given together: give only one of them.")
    spec = processes.spec_from_flags(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    start.check_rows(config, spec.num_processes)
    devices.use_huge_pages()
    start.prepare(config, spec, _VERBOSE.value)  # imports JAX, which takes a second; do this only after the checks
    from charlm.training import opening, train

    processes.join(spec)
    if _DESCRIBE.value:
        return opening.describe_only(config, _GRAPH.value, _GRAPH_STEPS.value, workdir, _TRUST_CODE.value)
    return train.train(config, str(workdir), _VERBOSE.value, _EXTEND.value, _ROWS.value, _TRUST_CODE.value)


def _config_of_run(workdir: str | None, overrides: dict[str, str]) -> ConfigDict:
    """The config of the run in the run directory, with overrides."""
    if workdir is None:
        raise UserError("--config is not given: give --config, or --workdir with the directory of a run.")
    if not os.path.exists(os.path.join(workdir, "status.json")):
        raise UserError(f"--config is not given, and --workdir={workdir} holds no run to resume: give --config to begin one.")
    config = Run(workdir).config()
    for name, value in overrides.items():
        load.override(config, name, value)
    return load.checked(config)
