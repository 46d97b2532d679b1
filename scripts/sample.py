"""Writes text with a trained model.

    scripts/sample.py --workdir=runs/quickstart --prompt='ROMEO:' --length=500 --temperature=0.8 [--top_k=5] [--top_p=0.9]
        [--num=4] [--seed=1]

One sample is written as it is drawn; of several, each stands under a line with its number. The same seed gives the same text.
"""

import pathlib
import sys

from absl import flags

from charlm import cli
from charlm.errors import UserError
from charlm.run import Run
from charlm.vocab import shown

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation nats), latest, or a step")
_PROMPT = flags.DEFINE_string("prompt", None, "text that the sample goes on from")
_PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "UTF-8 file whose whole text, last line break included, is the prompt")
_LENGTH = flags.DEFINE_integer("length", 500, "characters to draw, beside the prompt")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0: the most probable character always; 1: as the model says")
_TOP_K = flags.DEFINE_integer("top_k", 0, "draw from the k most probable characters; 0: from all")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "draw from the fewest characters whose probabilities sum to p, in (0, 1]")
_NUM = flags.DEFINE_integer("num", 1, "samples")
_SEED = flags.DEFINE_integer("seed", 0, "of the draws")
_UNKNOWN = flags.DEFINE_enum("unknown", "error", ["error", "skip"], "prompt characters outside the vocabulary: error or skip")


def main(overrides: dict[str, str]) -> None:
    del overrides
    _check_flags()
    prompt = _prompt()
    vocab = Run(_WORKDIR.value).vocab()
    if _UNKNOWN.value == "skip":
        strangers = vocab.missing(prompt)
        prompt = "".join(symbol for symbol in prompt if symbol in vocab.symbols)
        if strangers and prompt:
            print(f"note: dropped from the prompt: {shown(strangers)}", file=sys.stderr)
    elif strangers := vocab.missing(prompt):
        raise UserError(f"the prompt has {shown(strangers)}, outside the run's vocabulary: --unknown=skip drops such symbols.")
    if not prompt:
        raise UserError("the prompt is empty: give at least one character of the run's vocabulary.")

    import jax

    from charlm import restore, sample

    trained = restore.load(_WORKDIR.value, _CHECKPOINT.value)
    decoding = sample.Decoding(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    generate = sample.sampler(trained.functions, len(vocab), decoding, vocab.never_drawn())
    pieces = generate(trained.params, vocab.encode(prompt), _NUM.value, _LENGTH.value, jax.random.key(_SEED.value))
    if _NUM.value == 1:
        _write(prompt)
        for ids_BN in pieces:
            _write(vocab.decode(ids_BN[0]))
        _write("\n")
        return
    texts = [prompt] * _NUM.value
    for ids_BN in pieces:
        texts = [text + vocab.decode(ids_N) for text, ids_N in zip(texts, ids_BN, strict=True)]
    for number, text in enumerate(texts, start=1):
        _write(f"--- sample {number} ---\n{text}\n")


def _check_flags() -> None:
    for flag, is_right, what in (
        (_LENGTH, _LENGTH.value >= 0, "0 or more"),
        (_TEMPERATURE, 0 <= _TEMPERATURE.value < float("inf"), "0 or more"),
        (_TOP_K, _TOP_K.value >= 0, "0 or more"),
        (_TOP_P, 0 < _TOP_P.value <= 1, "above 0 and at most 1"),
        (_NUM, _NUM.value >= 1, "1 or more"),
        (_SEED, 0 <= _SEED.value < 2**32, "from 0 to 4294967295"),
    ):
        if not is_right:
            raise UserError(f"--{flag.name}={flag.value} is not right: it must be {what}.")
    if (_PROMPT.value is None) == (_PROMPT_FILE.value is None):
        raise UserError("--prompt or --prompt_file must be given, and not both, for example --prompt='ROMEO:'.")


def _prompt() -> str:
    if _PROMPT.value is not None:
        return _PROMPT.value
    try:
        return pathlib.Path(_PROMPT_FILE.value).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt_file={_PROMPT_FILE.value} is not UTF-8: byte at offset {error.start}.") from error
    except OSError as error:
        raise UserError(f"--prompt_file={_PROMPT_FILE.value} can't be read: {error.strerror}.") from error


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    cli.run(main)
