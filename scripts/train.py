"""Trains the model of a config into a run directory, or goes on with the run that is there.

    scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.model.hidden=512 ...]

Every key of configs/base.py can be set by --config.KEY=VALUE. The same command again resumes a run that was stopped or killed
and says so where it is done. Ctrl-C saves a checkpoint first. Exit status: 0 done, 1 diverged or failed, 2 a mistake in the
command, 130 or 143 stopped and resumable.
"""

from absl import flags

from charlm import cli, config

_CONFIG = flags.DEFINE_string("config", None, "config file, optionally with an argument: FILE.py[:ARG]", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory: made, or resumed if it is there", required=True)


def main(overrides: dict[str, str]) -> int:
    checked = config.load(_CONFIG.value, overrides)
    from charlm import train  # imports JAX, which takes a second: only once the command is known to be right

    return train.train(checked, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main)
