"""Runs a program of charlm. Parses the command line, prints each error as one sentence, and sets the exit status."""

import atexit
import contextlib
import gc
import io
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

from charlm.errors import Broken, Failure, UserError

PREFIX = "config."
HELP_KEYS = "--helpkeys"
ABOUT_HELP_KEYS = f"  {HELP_KEYS}: list all config keys; {HELP_KEYS}=markdown prints the list as Markdown"
ADVICE_ON_MEMORY = "use a smaller model, batch (rows, length), eval.rows or eval.lanes, or draw fewer samples at once."


def run(main: Callable[..., int | None], help_keys: Callable[[str], str] | None = None, takes_arguments: bool = False) -> None:
    """Parses the command line and runs a program's main, then exits.

    The exit status is 0 after success, 1 after a failure, 2 after a mistake of the user, and 128 + n after signal n.

    Args:
      main: the function to run. Its argument is a dict of config overrides, such as {'model.hidden': '512'}.
      help_keys: maps FORMAT to the text that `--helpkeys=FORMAT` prints. Only programs with a config need this function.
      takes_arguments: whether `main` has a second argument, a list of the command-line arguments that are not flags.
    """
    overrides: dict[str, str] = {}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Output to a terminal keeps the encoding of the locale. Output to files and pipes is always UTF-8, so that the same
            # command writes the same bytes on every machine. Characters that an encoding does not have are escaped.
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")

    def parse(argv: list[str]) -> list[str]:
        try:
            plain = _take_overrides([*argv[:1], *_with_flag_files(argv[1:])], overrides)
            if {"--help", "-help", "-h", "--h"} & set(plain[1:]):
                _print(_help_of(main.__module__, with_keys=help_keys is not None))
                sys.exit(0)
            formats = [argument.partition("=")[2] for argument in plain[1:] if argument.partition("=")[0] == HELP_KEYS]
            if formats and help_keys:
                _print(help_keys(formats[0]))
                sys.exit(0)
            rest = flags.FLAGS(plain)
            if len(rest) > 1 and not takes_arguments:
                raise UserError(f"{rest[1]!r} is not a flag: flags begin with --; see --help.")
            if overrides and PREFIX.rstrip(".") not in flags.FLAGS:
                raise UserError(
                    f"--{PREFIX}{next(iter(overrides))}: this program takes no config flags, because it uses the run's config."
                )
            return rest
        except (flags.Error, UserError) as error:
            missing = re.match(r"flag (--\w+)=None", _one_line(error))
            _end(f"{missing[1]} is not given: see --help." if missing else _one_line(error), 2)

    def run_main(argv: list[str]) -> None:
        arguments = (argv[1:],) if takes_arguments else ()
        try:
            sys.exit(main(overrides, *arguments))
        except UserError as error:
            _end(_one_line(error), 2)
        except Broken as error:
            with contextlib.suppress(OSError):
                print(f"error: {_one_line(error)}", file=sys.stderr, flush=True)
                sys.stdout.flush()
            os._exit(1)  # ends the process without Python's normal clean-up; see `Broken`
        except Failure as error:
            _end(_one_line(error), 1)
        except BrokenPipeError:  # the program that reads this output, such as `head`, has ended
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            _end(_one_line(error), 1)
        except (MemoryError, RuntimeError) as error:  # jaxlib raises a RuntimeError when memory runs out
            if str(error).startswith("Unable to initialize backend"):  # JAX's message also says what to do
                _end(_one_line(error), 1)
            if not isinstance(error, MemoryError) and not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
                raise
            allocation = re.search(r"allocat\w+ [\d.]+ ?\w+", str(error))
            _end(f"not enough memory{f' ({allocation[0]})' if allocation else ''}: {ADVICE_ON_MEMORY}", 1)
        except KeyboardInterrupt:
            _end("stopped.", 128 + signal.SIGINT)

    # When Python ends, it collects garbage once more. After a training, this takes 0.3 s, although all memory is freed anyway.
    atexit.register(gc.freeze)
    logging.set_verbosity(logging.WARNING)  # hide messages of libraries about their set-up
    app.run(run_main, flags_parser=parse)


def _with_flag_files(arguments: list[str]) -> list[str]:
    """Replaces each --flagfile=FILE by the flags in the file.

    absl would do this too, but only after `_take_overrides`, so that --config.KEY=VALUE in a file would be an unknown flag.
    """
    try:
        return flags.FLAGS.read_flags_from_files(arguments)
    except UnicodeDecodeError as error:
        raise UserError(f"a file that --flagfile names is not text: {error}.") from error
    except flags.CantOpenFlagFileError as error:
        raise UserError(f"--flagfile: {str(error).partition('] ')[2] or error}.") from error


def _take_overrides(argv: list[str], overrides: dict[str, str]) -> list[str]:
    """Moves --config.key=value (or --config.key value) from argv to overrides. Returns the other arguments."""
    plain, arguments = argv[:1], iter(argv[1:])
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.startswith(PREFIX):
            if not equals:
                following = next(arguments, None)
                if following is None:
                    raise UserError(f"--{name} has no value: write --{name}=VALUE.")
                value = following
            overrides[name.removeprefix(PREFIX)] = value
        else:
            plain.append(argument)
    return plain


def _help_of(module: str, with_keys: bool) -> str:
    examples = (sys.modules[module].__doc__ or "").strip()
    if _is_installed_command():
        examples = re.sub(r"scripts/(\w+)\.py", lambda match: command(match[1]), examples)
        examples = re.sub(r"configs/(\w+)\.py", r"\1", examples)
    parts = [examples, flags.FLAGS.module_help(module)]
    return "\n".join([*parts, ABOUT_HELP_KEYS] if with_keys else parts)


def command(program: str) -> str:
    """How the user starts a program: `charlm NAME` if this program was started that way, else `scripts/NAME.py`."""
    return f"charlm {program}" if _is_installed_command() else f"scripts/{program}.py"


def _is_installed_command() -> bool:
    return pathlib.Path(sys.argv[0]).stem in ("charlm", "__main__")  # __main__: `python -m charlm`


def _print(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # for example `charlm train --help | head`
        print(text, flush=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _end(message: str, status: int) -> NoReturn:
    with contextlib.suppress(OSError):
        print(f"error: {message}" if status in (1, 2) else message, file=sys.stderr, flush=True)
    sys.exit(status)
