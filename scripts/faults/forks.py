"""Starts trainings in processes that are forked from a process that has already imported charlm and JAX.

The imports take about half of the time of a short training. A forked training reads the same flags as scripts/train.py, and
`kill -9` ends it like any other process, but never during the imports.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from faults.runs import ROOT

MODULES = ("charlm.programs.train", "charlm.training.train", "charlm.inference.restore")  # they import JAX, Optax and Orbax
MOST_BYTES = 1 << 20  # of a request


class Forked:
    """A training in a forked process. Has the methods of `subprocess.Popen` that `kill` and `configs` use."""

    def __init__(self, server: socket.socket, arguments: list[str]):
        self.returncode: int | None = None
        self._outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]  # files in memory
        answers, to_answer = os.pipe()
        socket.send_fds(server, [json.dumps(arguments).encode()], [*self._outputs, to_answer])
        os.close(to_answer)
        self._answers = os.fdopen(answers)
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = int(self._answers.readline())
            self._answers.close()
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked training", timeout)
            time.sleep(0.005)
        output, errors = map(_text_of, self._outputs)
        return output, errors


def _text_of(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read().decode()


@contextlib.contextmanager
def forking(**environment: str) -> Iterator[Callable[[list[str]], Forked]]:
    """Starts the process from which trainings are forked. It ends at the end of the context.

    Args:
      environment: variables for the trainings, in addition to those of this process.

    Yields:
      A function like `runs.start`: it takes the command of `Runs.train` and returns the started training.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    # Without GLIBC_TUNABLES, each training would restart itself, and import everything again.
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **environment, **os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "faults.forks", str(theirs.fileno())]
    lock = threading.Lock()

    def start(train: list[str]) -> Forked:
        with lock:
            return Forked(ours, train[1:])

    with subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]), ours:  # closing `ours` ends the process
        theirs.close()
        yield start


def _serve(requests: socket.socket) -> None:
    """Forks a training for each request. Writes its process id, and later its exit status, to the pipe of the request.

    A request is the list of arguments, with the descriptors of standard output, of standard error and of this pipe.
    """
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # the garbage collector of a fork then does not write to these objects, so their memory stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Linux removes the waiting processes when they have ended
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MOST_BYTES, 3)
        if not message:
            return
        if not os.fork():
            requests.close()
            _run_and_wait(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _run_and_wait(arguments: list[str], output: int, errors: int, answers: int) -> None:
    """Forks the training and waits for it. Ends this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    training = os.fork()
    if not training:
        os.close(answers)
        for descriptor, standard in ((output, 1), (errors, 2)):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        sys.argv = arguments
        from charlm.programs import train

        train.run()
        return
    os.write(answers, f"{training}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(training, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # the program that asked for the training has ended
        os.write(answers, f"{status}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
