"""Writes text with a trained model.

    scripts/sample.py --workdir=runs/quickstart --prompt='ROMEO:' [--length=500] [--temperature=0.8] [--top_k=5] [--top_p=0.9]
        [--num=4] [--seed=1]
    scripts/sample.py --workdir=runs/ag_news --prompt='Today ' --prompt='On ' --temperature=0.3,0.8,1.3
    scripts/sample.py --workdir=runs/sonnets_keras --prompt_from=train
    scripts/sample.py --workdir=runs/names --prompt=A --num=20 --stop=$'\\n'
    scripts/sample.py --workdir=runs/quickstart --interactive

If you leave out the prompt, --length, --temperature or --top_k, its value comes from the `sample` section of the run's config.
A model of documents that was trained with batch.start_symbol needs no prompt: --prompt='' writes a whole document.

For each pair of a prompt and a temperature, --num samples are drawn. A single sample is written while it is drawn. Several
samples are printed with a line above each sample. This line has the number, the temperature and the prompt of the sample.
Values that are the same for all samples are left out of the line. The same seed gives the same text.

A model that was trained with batch.framing=documents stops when it draws the end of a document. A model that was trained with
batch.framing=windows reads only the last characters before each draw: see --window.

With --interactive, each line of standard input is a prompt. The program draws text after each prompt, until standard input ends
(Ctrl-D). `/continue` continues the last text from the state that the model had at its end. `/continue TEXT` adds TEXT to the
last text first. Ctrl-C ends only the text that is being drawn.
"""

import contextlib
import functools
import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict

from charlm import cli, files
from charlm.config.rules import MOST
from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.inference import inputs
from charlm.programs import model_flags
from charlm.rundir.directory import check_checkpoint_name
from charlm.rundir.run import Run

if TYPE_CHECKING:
    from charlm.inference.session import Session

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
_CHECKPOINT = model_flags.checkpoint()
_PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "text that the sample continues; empty: a new document (see batch.start_symbol)"
)
_PROMPT_FILE = flags.DEFINE_string(
    "prompt_file",
    None,
    "UTF-8 file whose whole text, including the last line break, is the prompt; -: standard input",
)
_PROMPT_FROM = flags.DEFINE_string(
    "prompt_from", None, "the prompt is a piece of this split of the run's corpus; --seed chooses the piece"
)
_PROMPT_LENGTH = flags.DEFINE_integer(
    "prompt_length",
    100,
    "length in characters of the prompt that --prompt_from takes from a split. In a corpus of documents, the prompt is the "
    "start of one document, and is at most half as long as this document",
)
_LENGTH = flags.DEFINE_integer("length", None, "number of characters to draw after the prompt; default: sample.length")
_TEMPERATURE = flags.DEFINE_list(
    "temperature",
    None,
    "0: always the most probable character; 1: the model's own probabilities; separate several values by commas; default: "
    "sample.temperature",
)
_TOP_K = flags.DEFINE_integer(
    "top_k", None, "draw from the k most probable characters; 0: from all characters; default: sample.top_k"
)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "draw from the fewest characters whose probabilities sum to at least p; 0 < p <= 1")
_NUM = flags.DEFINE_integer("num", 1, "number of samples for each prompt and temperature; these samples are drawn in parallel")
_WINDOW = flags.DEFINE_integer(
    "window",
    None,
    "number of previous characters that the model reads again before each draw. Before it reads them, its state is set to "
    "zero. --window=0 keeps the state from draw to draw instead. Default: as in training",
)
_DTYPE = flags.DEFINE_enum("dtype", None, inputs.DTYPES, "number type of matrix products; default: as in training")
_SEED = flags.DEFINE_integer("seed", 0, "seed of the random draws")
_UNKNOWN = flags.DEFINE_enum(
    "unknown",
    "error",
    inputs.UNKNOWN,
    "prompt characters outside the vocabulary; error: stop with a message; skip: drop them",
)
_STOP = flags.DEFINE_multi_string(
    "stop",
    [],
    "end each sample when this text is drawn, and leave this text out. Give the flag several times to end each sample at "
    "whichever text is drawn first",
)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "read prompts from standard input, one a line, until Ctrl-D; /continue continues the last text"
)
_TRUST_CODE = model_flags.trust_code()
_VERBOSE = model_flags.verbose()


def run() -> None:
    cli.run(main)


def main(overrides: dict[str, str]) -> None:
    del overrides
    temperatures = _checked_flags()
    run = Run(_WORKDIR.value)
    vocab, config = run.vocab(), run.config()
    stop = inputs.stop_texts(_STOP.value, config, vocab)
    prompts = [] if _INTERACTIVE.value else _prompts(run, config, vocab)

    from charlm.models import stack
    from charlm.models.cells import own

    own.load(config, own.trusted(run, _TRUST_CODE.value, f"--workdir={_WORKDIR.value}"))
    weights = stack.layer_operations(config)
    rows = devices.rows_to_share(config, weights, _NUM.value, _DTYPE.value or config.model.dtype)
    settings = devices.prepare(config, rows)
    if _VERBOSE.value:
        print("".join(f"{setting}\n" for setting in settings), end="", file=sys.stderr)

    from charlm.inference import model

    trained = model.load(_WORKDIR.value, _CHECKPOINT.value, _DTYPE.value, _TRUST_CODE.value)
    choices: dict[str, Any] = {"top_k": _TOP_K.value, "top_p": _TOP_P.value, "window": _WINDOW.value, "stop": stop}
    if _INTERACTIVE.value:
        from charlm.inference.session import Session

        check = functools.partial(inputs.typed_prompt, config=config, vocab=vocab, unknown=_UNKNOWN.value)
        _talk(Session(trained, check, _LENGTH.value, temperatures[0], _SEED.value, **choices))
        return

    def draw(prompt: str, temperature: float | None, cell: int = 0) -> Iterator[list[str]]:
        return trained.draw(prompt, _LENGTH.value, temperature, _SEED.value, num=_NUM.value, cell=cell, **choices)

    if len(prompts) * len(temperatures) * _NUM.value == 1:
        _write(prompts[0])
        for (text,) in draw(prompts[0], temperatures[0]):
            _write(text)
        _write("\n")
        return
    for cell, (temperature, prompt) in enumerate(itertools.product(temperatures, prompts)):
        pieces = draw(prompt, temperature, cell)
        for number, text in enumerate(model.joined(pieces, _NUM.value), start=1):
            named = [f"sample {number}"] if _NUM.value > 1 else []
            named += [f"temperature {temperature:g}"] if len(temperatures) > 1 else []
            named += [f"prompt {prompt!r}"] if len(prompts) > 1 else []
            _write(f"--- {', '.join(named)} ---\n{prompt}{text}\n")


def _checked_flags() -> list[float | None]:
    """Returns the temperatures, where None means sample.temperature. Raises a UserError for the first wrong flag."""
    typed: list[str] | None = _TEMPERATURE.value
    temperatures: list[float | None] = [None]
    if typed is not None:
        try:
            temperatures = [float(value) for value in typed]
        except ValueError as error:
            raise UserError(f"--temperature={','.join(typed)}: must be numbers separated by commas.") from error
    if not temperatures:
        raise UserError(f"--temperature=: must be from 0 to {MOST:g}.")
    inputs.check_sampling(length=_LENGTH.value)
    for temperature in temperatures:
        inputs.check_sampling(temperature=temperature)
    inputs.check_sampling(
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
        num=_NUM.value,
        window=_WINDOW.value,
        prompt_length=_PROMPT_LENGTH.value,
        seed=_SEED.value,
    )
    if sum((bool(_PROMPT.value), _PROMPT_FILE.value is not None, _PROMPT_FROM.value is not None)) > 1:
        raise UserError("--prompt, --prompt_file and --prompt_from: give only one of them.")
    if _INTERACTIVE.value:
        given = [f"--{flag.name}" for flag in (_PROMPT, _PROMPT_FILE, _PROMPT_FROM) if flag.value]
        given += ["--num"] if _NUM.value > 1 else []
        given += ["several values of --temperature"] if len(temperatures) > 1 else []
        if given:
            raise UserError(f"--interactive draws one text after each prompt that you type: leave out {' and '.join(given)}.")
    check_checkpoint_name(_CHECKPOINT.value)
    return temperatures


def _prompts(run: Run, config: ConfigDict, vocab: Vocab) -> list[str]:
    if _PROMPT_FROM.value is not None:
        split, length, seed = _PROMPT_FROM.value, _PROMPT_LENGTH.value, _SEED.value
        return [inputs.excerpt_prompt(run, split, length, seed, vocab, _UNKNOWN.value)]
    typed = _PROMPT.value if _PROMPT_FILE.value is None else [_prompt_of_file(_PROMPT_FILE.value)]
    if typed:
        return [inputs.typed_prompt(prompt, config, vocab, _UNKNOWN.value) for prompt in typed]
    return [inputs.own_prompt(run, config, vocab, _UNKNOWN.value)]


def _prompt_of_file(path: str) -> str:
    try:
        content = sys.stdin.buffer.read() if path == "-" else files.read(path)
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt_file={path} is not UTF-8: byte at offset {error.start}.") from error
    except OSError as error:
        raise UserError(f"--prompt_file={path} can't be read: {error.strerror}.") from error


def _talk(session: "Session") -> None:
    """Answers the lines of standard input until it ends."""
    for line in _typed_lines():
        try:
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends this text; then the next line is read
                for text in session.answer(line):
                    _write(text)
            _write("\n")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)


def _typed_lines() -> Iterator[str]:
    """The lines of standard input, without line breaks. On a terminal, a mark shows that a line is expected."""
    if not sys.stdin.isatty():
        for content in sys.stdin.buffer:
            yield content.decode("utf-8", "backslashreplace").removesuffix("\n").removesuffix("\r")
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then keeps a history of the lines
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")
    _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
