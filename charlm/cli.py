"""What every script shares: reading the command line, and ending with one sentence and the right exit status."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging

from charlm.errors import Broken, Failure, UserError

PREFIX = "config."
LESS_MEMORY = "a smaller model, batch (rows, length), number of eval.rows or eval.lanes, or of samples at once needs less."


def run(main: Callable[..., int | None], takes_arguments: bool = False) -> None:
    """Parses the command line and runs a script's main, which receives the overrides: {'model.hidden': '512', …}.

    With `takes_arguments` it receives those that are no flags too, as a list of strings.

    Exit status: 0 done, 1 a failure, 2 a mistake of the user's, 128 + n stopped by signal n.
    """
    overrides: dict[str, str] = {}
    for stream in (sys.stdout, sys.stderr):  # a name or a text that the terminal's encoding has not is shown, not the end of it
        stream.reconfigure(errors="backslashreplace")

    def parse(argv: list[str]) -> list[str]:
        try:
            plain = _take_overrides(argv, overrides)
            if {"--help", "-help", "-h", "--h"} & set(plain[1:]):
                _print_help(main.__module__)
                sys.exit(0)
            rest = flags.FLAGS(plain)
            if len(rest) > 1 and not takes_arguments:
                raise UserError(f"{rest[1]!r} is no flag: flags begin with --; see --help.")
            if overrides and PREFIX.rstrip(".") not in flags.FLAGS:
                raise UserError(f"--{PREFIX}{next(iter(overrides))}: this script takes no config; the run has its own.")
            return rest
        except (flags.Error, UserError) as error:
            missing = re.match(r"flag (--\w+)=None", _one_line(error))
            _end(f"{missing[1]} is not given: see --help." if missing else _one_line(error), 2)

    def guarded(argv: list[str]) -> None:
        arguments = (argv[1:],) if takes_arguments else ()
        try:
            sys.exit(main(overrides, *arguments))
        except UserError as error:
            _end(_one_line(error), 2)
        except Broken as error:
            with contextlib.suppress(OSError):
                print(f"error: {_one_line(error)}", file=sys.stderr, flush=True)
                sys.stdout.flush()
            os._exit(1)
        except Failure as error:
            _end(_one_line(error), 1)
        except BrokenPipeError:  # the reader of our output has gone: nobody to tell
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            _end(_one_line(error), 1)
        except (MemoryError, RuntimeError) as error:  # jaxlib's is a RuntimeError
            if not isinstance(error, MemoryError) and not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
                raise
            asked = re.search(r"allocat\w+ [\d.]+ ?\w+", str(error))
            _end(f"there is not enough memory{f' ({asked[0]})' if asked else ''}: {LESS_MEMORY}", 1)
        except KeyboardInterrupt:
            _end("stopped.", 128 + signal.SIGINT)

    logging.set_verbosity(logging.WARNING)  # the libraries' lines on what they set up are no news for the user
    app.run(guarded, flags_parser=parse)


def _take_overrides(argv: list[str], overrides: dict[str, str]) -> list[str]:
    """Moves --config.key=value (or --config.key value) from argv to overrides; returns the other arguments."""
    plain, arguments = argv[:1], iter(argv[1:])
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.startswith(PREFIX):
            if not equals:
                value = next(arguments, None)
                if value is None:
                    raise UserError(f"--{name} has no value: write --{name}=VALUE.")
            overrides[name.removeprefix(PREFIX)] = value
        else:
            plain.append(argument)
    return plain


def _print_help(module: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # as in `charlm train --help | head`
        print(f"{(sys.modules[module].__doc__ or '').strip()}\n{flags.FLAGS.module_help(module)}", flush=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _end(message: str, status: int) -> None:
    with contextlib.suppress(OSError):
        print(f"error: {message}" if status in (1, 2) else message, file=sys.stderr, flush=True)
    sys.exit(status)
