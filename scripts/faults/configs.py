"""Trains with random configs, and kills and resumes each training once.

A config is a framing with up to MOST_CHANGES random changes. If the program refuses the config, it must do so with one error
sentence and leave no run directory. Otherwise, a second training with the same config is killed by `kill -9` at a random moment
and started again. It must not differ from the first training.

The trainings are forks; see `forks`. XLA compiles their programs with fewer optimisations than those of a user, which saves
most of the time.
"""

import concurrent.futures
import pathlib
import random
import shutil
import signal
import time

from faults import checks, forks
from faults.runs import FRAMINGS, Process, Result, Runs, Start, finish, quick_compilation, wait_for_moment

MOST_CHANGES = 10
BASE = {
    "model.hidden": 12,
    "model.embedding": 12,
    "train.steps": 40,
    "train.log_every": 5,
    "train.eval_every": 16,
    "train.checkpoint_every": 6,
    "sample.length": 10,
}
LAYER_CELLS = ("lstm", "rnn", "gru", "layernorm_lstm", "mogrifier_lstm", "slstm", "mingru", "minlstm")
CHOICES: dict[str, tuple[object, ...]] = {
    "seed": (1, 2**31),
    "devices": (1, 2),
    "corpus.lowercase": (True,),
    "corpus.split": ("(0.8,0.2)", "(0.8,0.1,0.1)", "(1.0,)"),
    "vocab.source": ("train", "bytes"),
    "vocab.unknown": (True,),
    "batch.size": (2, 4, 6),
    "batch.length": (5, 16, 33),
    "batch.shift": (False,),
    "batch.stride": (1, 7),
    "batch.shuffle": (False,),
    "batch.bucket": (1, 8),
    "batch.padding": ("counted",),
    "batch.start_symbol": (False,),
    "model.cell": (*LAYER_CELLS, '("lstm","gru")', '("mingru","rnn")'),
    "model.input": ("onehot", "scalar"),
    "model.layers": (1, 2, 3),
    "model.hidden": (6, 24),
    "model.widths": ("(8,12)", "(16,)"),
    "model.residual": (True,),
    "model.norm": (True,),
    "model.mlp": (1, 2),
    "model.tie": (True,),
    "model.dropout": (0.3,),
    "model.dropout_input": (0.2,),
    "model.dropout_hidden": (0.2,),
    "model.dropout_output": (0.2,),
    "model.dropout_kind": ("variational",),
    "model.weight_drop": (0.3,),
    "model.embedding_dropout": (0.2,),
    "model.recurrent_dropout": (0.2,),
    "model.zoneout_cell": (0.2,),
    "model.zoneout_hidden": (0.1,),
    "model.state_noise": (0.1,),
    "model.ar": (1.0,),
    "model.tar": (1.0,),
    "model.init": ("glorot", "axon", "pytorch", "uniform"),
    "model.head_scale": (0.1,),
    "model.mogrifier_rounds": (0, 2),
    "model.slstm_heads": (2, 3),
    "model.dtype": ("bfloat16",),
    "model.unroll": (4,),
    "optim.name": ("adam", "adamw", "rmsprop", "sgd", "lion", "adafactor", "adan", "muon", "schedule_free_adamw"),
    "optim.learning_rate": (1e-3, 0.1),
    "optim.schedule": ("constant", "cosine", "trapezoid", "exponential", "step"),
    "optim.warmup_steps": (5,),
    "optim.decay_steps": (10,),
    "optim.clip_norm": (0.0, 0.1),
    "optim.clip_value": (0.5,),
    "optim.weight_decay": (0.1,),
    "optim.average": ("ema", "tail", "nt_asgd"),
    "optim.average_decay": (0.9,),
    "optim.average_last": (0.5, 1.0),
    "optim.average_patience": (0, 1),
    "train.steps_per_call": (1, 3, 10),
    "train.patience": (1, 2),
    "train.halvings": (1,),
    "train.best": ("train",),
    "train.checkpoint_every": (0, 1),
    "eval.length": (7,),
    "eval.lanes": (3,),
    "sample.top_k": (3,),
    "sample.temperature": (0.0,),
}


def results(runs: Runs) -> list[Result]:
    with forks.forking(**quick_compilation()) as start, concurrent.futures.ThreadPoolExecutor(2) as pool:
        tried = list(pool.map(lambda number: _try(runs, number, start), range(runs.configs)))
    how = [name for name, _ in tried]
    note = ", ".join(
        f"{how.count(name)} {name}" for name in ("killed and resumed", "done before the kill", "refused", "diverged")
    )
    return [Result("kill -9, random configs", len(tried), [line for _, lines in tried for line in lines], note)]


def random_config(runs: Runs, number: int) -> tuple[str, dict[str, object]]:
    """A framing, and the overrides of a random config."""
    rng = runs.random("config", number)
    names = rng.sample(sorted(CHOICES), rng.randint(1, MOST_CHANGES))
    return rng.choice(sorted(FRAMINGS)), BASE | {name: rng.choice(CHOICES[name]) for name in names}


def _try(runs: Runs, number: int, start: Start) -> tuple[str, list[str]]:
    """Tries one config. Returns how the trial ended, and one line for each failure."""
    folder = runs.folder / "configs" / str(number)
    folder.mkdir(parents=True)
    framing, overrides = random_config(runs, number)
    try:
        how, failures = _train_and_kill(runs, folder, framing, overrides, runs.random("config", number, "moment"), start)
    except Exception as error:  # such as a run without samples, which can't be compared
        how, failures = "failed", [f"{type(error).__name__}: {error}"]
    if not failures:
        shutil.rmtree(folder)
    return how, [f"{framing}, {overrides}: {line}" for line in failures]


def _train_and_kill(
    runs: Runs, folder: pathlib.Path, framing: str, overrides: dict[str, object], rng: random.Random, start: Start
) -> tuple[str, list[str]]:
    straight, workdir = (folder / name for name in ("straight", "run"))
    begin = time.monotonic()
    status, errors = _ended(start(runs.train(straight, framing, **overrides)))
    if status == 2:
        left = [f"the refused training made {straight}"] if straight.exists() else []
        return "refused", checks.refusal(status, errors, ("",), "a refused config") + left
    if status == 1 and "is marked diverged" in errors:
        return "diverged", checks.refusal(status, errors, ("",), "a diverged training")
    if status:
        return "failed", [f"exit status {status}: {errors[-500:]}"]
    process = start(runs.train(workdir, framing, **overrides))
    wait_for_moment(process, workdir, rng.choice(("start-up", "checkpoint", "row")), rng, time.monotonic() - begin)
    process.kill()
    killed, errors = _ended(process)
    if killed not in (0, -signal.SIGKILL):
        return "failed", [f"exit status {killed}: {errors[-500:]}"]
    status, errors = _ended(start(runs.train(workdir, framing, **overrides)))
    if status:
        return "failed", [f"resume: exit status {status}: {errors[-500:]}"]
    return "killed and resumed" if killed else "done before the kill", checks.survival(workdir, straight)


def _ended(process: Process) -> tuple[int, str]:
    """Waits for a training. Returns its exit status and standard error."""
    _, errors = finish(process)
    return process.returncode, errors
