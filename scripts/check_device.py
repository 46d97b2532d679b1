"""Checks whether charlm computes right results on this machine's device, and measures how fast it is.

    scripts/check_device.py [--only=accuracy,speed] [--out=runs/check_device] [--minutes=8] [--text=FILE]

The device is the one that JAX uses: a GPU, a TPU or the CPU. These are the parts:

    accuracy    every cell and kernel equals NumPy in float64: loss, gradient, training step, evaluation, greedy sample
    resume      a run that was killed with kill -9 and resumed equals an unbroken run, bit for bit
    checkpoint  a checkpoint of the device is scored and trained on by the CPU, and the other way round
    speed       chars/s of the training step, time to the first step and memory, for several sizes, kernels and number types
    torch       the same for torch.nn.LSTM
    training    a whole training reaches the loss that was recorded on a CPU
    packed      16 trials as one program equal trials that are trained alone
    devices     several devices give the losses of one device

Each part runs in its own process, which is killed when the time of the part is up. The parts share --minutes. A part that needs
something that this machine lacks is skipped. After each part, all figures so far are written to check_device.json in the folder
--out. At the end, the program prints the figures as tables, and a line for everything that is wrong.

--text is the text for the part training. If it is tiny Shakespeare, the loss is compared with the recorded loss. The default is
tiny Shakespeare, or a made-up text if this machine does not have tiny Shakespeare and can't fetch it.

The exit status is 0 if nothing is wrong, 1 if something is wrong, and 2 if a flag is wrong.
"""

import os
import pathlib
import tempfile
import time

from absl import flags
from device import results, running
from device.parts import PARTS

from charlm import cli
from charlm.errors import UserError
from charlm.progress import counted, duration, tell

_ONLY = flags.DEFINE_list("only", [], f"parts to run: {', '.join(PARTS)}; default: all")
_OUT = flags.DEFINE_string("out", "runs/check_device", "folder for check_device.json")
_MINUTES = flags.DEFINE_float("minutes", 8.0, "time that all parts together may take")
_TEXT = flags.DEFINE_string("text", None, "text file for the part training")


def main(overrides: dict[str, str]) -> int:
    del overrides
    names, text, file = _check_flags()
    end = time.monotonic() + 60 * _MINUTES.value
    with tempfile.TemporaryDirectory(prefix="charlm_check_device_", ignore_cleanup_errors=True) as temporary:
        scratch = pathlib.Path(temporary)
        environment = running.environment(scratch)
        device = running.probe(environment)
        found = results.Results(file, device, _MINUTES.value)
        tell(f"checking {results.device_in_words(device)}, for at most {duration(end - time.monotonic())}")
        for number, name in enumerate(names):
            seconds = running.budget(name, names[number + 1 :], end - time.monotonic())
            tell(f"{name}: {PARTS[name].about} (at most {duration(seconds)}) …")
            folder = scratch / name
            folder.mkdir()
            job = {"seconds": seconds, "folder": os.fspath(folder), "text": text, "device": device}
            outcome = running.run(name, running.command(name, job), seconds, environment)
            found.add(outcome)
            tell(f"{name}: {results.in_words(outcome)}")
    found.print_tables()
    lines = found.wrong()
    for line in lines:
        tell(f"wrong: {line}")
    conclusion = counted(len(lines), "wrong result") if lines else "Nothing is wrong"
    tell(f"{conclusion}; {file} has all figures.")
    return 1 if lines else 0


def _check_flags() -> tuple[list[str], str, pathlib.Path]:
    """Returns the parts to run, the text file for the part training (empty: the default), and the JSON file.

    Raises:
      UserError: a flag is wrong.
    """
    if unknown := [name for name in _ONLY.value if name not in PARTS]:
        raise UserError(f"--only={','.join(unknown)}: must be one or several of {', '.join(PARTS)}.")
    if not 0 < _MINUTES.value < float("inf"):
        raise UserError(f"--minutes={_MINUTES.value}: must be positive.")
    text = _TEXT.value or ""
    if (text and not os.access(text, os.R_OK)) or os.path.isdir(text):
        raise UserError(f"--text={text} can't be read: give a text file.")
    folder = pathlib.Path(_OUT.value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--out={folder} can't be written ({error.strerror}): choose another folder.") from error
    names = [name for name in PARTS if name in (_ONLY.value or PARTS)]
    return names, os.path.abspath(text) if text else "", folder / "check_device.json"


if __name__ == "__main__":
    cli.run(main)
