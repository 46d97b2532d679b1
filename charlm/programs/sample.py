"""Writes text with a trained model.

    scripts/sample.py --workdir=runs/quickstart --prompt='ROMEO:' [--length=500] [--temperature=0.8] [--top_k=5] [--top_p=0.9]
        [--num=4] [--seed=1]
    scripts/sample.py --workdir=runs/ag_news --prompt='Today ' --prompt='On ' --temperature=0.3,0.8,1.3
    scripts/sample.py --workdir=runs/sonnets_keras --prompt_from=train

What is not given, the prompt too, is as the section `sample` of the run's config has it.

One sample is written as it is drawn. Of several (each prompt with each temperature, --num of each) every one stands under a
line that names it. The same seed gives the same text. A model of documents ends its text where it draws the end of one; one
trained on windows draws each character after a window of its own output, as --window says.
"""

import itertools
import pathlib
import sys

from absl import flags

from charlm import cli
from charlm.config.load import MOST, defaults
from charlm.data import batches, corpora
from charlm.data.vocab import UNK, Vocab, shown
from charlm.errors import UserError
from charlm.hardware import cache, devices
from charlm.rundir.run import Run, check_checkpoint_name

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by train.best), latest, or a step")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "text that the sample goes on from; may be given several times")
_PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "UTF-8 file whose whole text, last line break included, is the prompt")
_PROMPT_FROM = flags.DEFINE_string(
    "prompt_from", None, "split of the run's corpus from which a prompt is taken, chosen by --seed"
)
_PROMPT_LENGTH = flags.DEFINE_integer(
    "prompt_length", 100, "of --prompt_from, in characters; of documents at most the first half of one"
)
_LENGTH = flags.DEFINE_integer("length", None, "characters to draw, beside the prompt; by default sample.length")
_TEMPERATURE = flags.DEFINE_list(
    "temperature",
    None,
    "0: the most probable character always; 1: as the model says; several, separated by commas; by default sample.temperature",
)
_TOP_K = flags.DEFINE_integer("top_k", None, "draw from the k most probable characters; 0: from all; by default sample.top_k")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "draw from the fewest characters whose probabilities sum to p, in (0, 1]")
_NUM = flags.DEFINE_integer("num", 1, "samples of each prompt and temperature, drawn at once")
_WINDOW = flags.DEFINE_integer(
    "window", None, "characters that each draw sees, from the zero state; 0: all, the state is carried"
)
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "of matrix products; by default as in training")
_SEED = flags.DEFINE_integer("seed", 0, "of the draws")
_UNKNOWN = flags.DEFINE_enum("unknown", "error", ["error", "skip"], "prompt characters outside the vocabulary: error or skip")


def run() -> None:
    cli.run(main)


def main(overrides: dict[str, str]) -> None:
    del overrides
    asked = _check_flags()
    run = Run(_WORKDIR.value)
    vocab, config = run.vocab(), run.config()
    temperatures = asked or [config.sample.temperature]
    length = (config.sample.length or defaults().sample.length) if _LENGTH.value is None else _LENGTH.value
    top_k = config.sample.top_k if _TOP_K.value is None else _TOP_K.value
    prompts = _prompts(run, config, vocab)
    shared = devices.rows_to_share(config, _NUM.value, _DTYPE.value or config.model.dtype)
    set_here = devices.prepare_cpu(config, shared)
    cache.keep_compiled(cache.user_folder(config))

    import jax
    import numpy as np

    from charlm.inference import restore, sample

    window = batches.Framing.of(config).window if _WINDOW.value is None else _WINDOW.value
    trained = restore.load(_WORKDIR.value, _CHECKPOINT.value, _DTYPE.value)
    for line in set_here:
        print(line, file=sys.stderr)
    mesh = devices.mesh(shared, devices.wanted(config))
    generate = sample.sampler(trained.functions, vocab, top_k, _TOP_P.value, window, mesh)

    def pieces(cell: int, prompt: str, temperature: float):
        key = jax.random.fold_in(jax.random.key(_SEED.value), cell)  # no two cells of a grid draw with the same noise
        return generate(trained.params, vocab.encode(prompt), _NUM.value, length, temperature, key)

    if len(prompts) * len(temperatures) * _NUM.value == 1:
        _write(prompts[0])
        for ids_BN in pieces(0, prompts[0], temperatures[0]):
            ids_N = sample.until_end(ids_BN[0], vocab)
            _write(vocab.decode(ids_N))
            if len(ids_N) < ids_BN.shape[1]:
                break
        _write("\n")
        return
    for cell, (temperature, prompt) in enumerate(itertools.product(temperatures, prompts)):
        drawn = list(pieces(cell, prompt, temperature)) or [np.zeros((_NUM.value, 0), np.int32)]
        for number, ids_N in enumerate(np.concatenate(drawn, axis=1), start=1):
            named = [f"sample {number}"] if _NUM.value > 1 else []
            named += [f"temperature {temperature:g}"] if len(temperatures) > 1 else []
            named += [f"prompt {prompt!r}"] if len(prompts) > 1 else []
            _write(f"--- {', '.join(named)} ---\n{prompt}{vocab.decode(sample.until_end(ids_N, vocab))}\n")


def _check_flags() -> list[float]:
    """The temperatures, where some are given; raises a UserError for the first flag that is not right."""
    try:
        temperatures = [float(value) for value in _TEMPERATURE.value or []]
    except ValueError as error:
        raise UserError(
            f"--temperature={','.join(_TEMPERATURE.value)} is not right: numbers separated by commas would be."
        ) from error
    for flag, is_right, what in (
        (_LENGTH, _LENGTH.value is None or 0 <= _LENGTH.value < 2**31, "from 0 to 2147483647"),
        (_TEMPERATURE, _TEMPERATURE.value != [] and all(0 <= value <= MOST for value in temperatures), f"from 0 to {MOST:g}"),
        (_TOP_K, _TOP_K.value is None or 0 <= _TOP_K.value < 2**31, "from 0 to 2147483647"),
        (_TOP_P, 0 < _TOP_P.value <= 1, "above 0 and at most 1"),
        (_NUM, 1 <= _NUM.value < 2**31, "from 1 to 2147483647"),
        (_WINDOW, _WINDOW.value is None or 0 <= _WINDOW.value < 2**31, "from 0 to 2147483647"),
        (_PROMPT_LENGTH, _PROMPT_LENGTH.value >= 1, "1 or more"),
        (_SEED, 0 <= _SEED.value < 2**32, "from 0 to 4294967295"),
    ):
        if not is_right:
            value = ",".join(flag.value) if isinstance(flag.value, list) else flag.value
            raise UserError(f"--{flag.name}={value} is not right: it must be {what}.")
    if sum((bool(_PROMPT.value), _PROMPT_FILE.value is not None, _PROMPT_FROM.value is not None)) > 1:
        raise UserError("of --prompt, --prompt_file and --prompt_from more than one is given: one would be right.")
    check_checkpoint_name(_CHECKPOINT.value)
    return temperatures


def _prompts(run: Run, config, vocab: Vocab) -> list[str]:
    """The prompts, with the case and line breaks that the run's corpus has; symbols outside the vocabulary only where it has
    `<unk>` and they come from the run's config or corpus."""
    if typed := [_of_file()] if _PROMPT_FILE.value is not None else _PROMPT.value:
        return [_known(corpora.prompt(prompt, config), vocab) for prompt in typed]
    own = _own_prompt(run, config)
    return [own if vocab.id_of(UNK) is not None and _UNKNOWN.value == "error" else _known(own, vocab)]


def _own_prompt(run: Run, config) -> str:
    """From the split that --prompt_from names, else what the samples of the training begin with."""
    if _PROMPT_FROM.value is None:
        configured, length = config.sample.prompt, batches.Framing.of(config).window or 1
        return corpora.opening(run.splits(), length) if configured is None else corpora.prompt(configured, config)
    if _PROMPT_FROM.value not in run.corpus()["splits"]:
        raise UserError(
            f"--prompt_from={_PROMPT_FROM.value} is none of this run's splits: {', '.join(run.corpus()['splits'])}."
        )
    return corpora.excerpt(run.splits()[_PROMPT_FROM.value], _PROMPT_LENGTH.value, _SEED.value)


def _of_file() -> str:
    try:
        return pathlib.Path(_PROMPT_FILE.value).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt_file={_PROMPT_FILE.value} is not UTF-8: byte at offset {error.start}.") from error
    except OSError as error:
        raise UserError(f"--prompt_file={_PROMPT_FILE.value} can't be read: {error.strerror}.") from error


def _known(prompt: str, vocab: Vocab) -> str:
    """The prompt, without symbols outside the vocabulary where these are to be skipped."""
    strangers = vocab.missing(prompt)
    if strangers and _UNKNOWN.value == "error":
        raise UserError(f"the prompt has {shown(strangers)}, outside the run's vocabulary: --unknown=skip drops such symbols.")
    prompt = "".join(symbol for symbol in prompt if symbol in vocab.symbols)
    if not prompt:
        raise UserError("the prompt is empty: give at least one character of the run's vocabulary.")
    if strangers:
        print(f"note: dropped from the prompt: {shown(strangers)}", file=sys.stderr)
    return prompt


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
