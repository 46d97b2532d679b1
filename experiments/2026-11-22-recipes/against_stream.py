"""Compares a recipe with a stream: same text, same training time, same scoring.

    .venv/bin/python experiments/2026-11-22-recipes/against_stream.py RECIPE[:ARG] SECONDS [--config.KEY=VALUE ...]

RECIPE is a file of configs/. It trains on the first nine tenths of its corpus for SECONDS, start-up and evaluation included.
Then SIGTERM stops it. A stream then trains for SECONDS: an embedding, two LSTM layers of 256 with dropout, and Adam with a
cosine schedule. A short first run estimates how many steps the stream can make. Further flags go to the recipe.

scripts/evaluate.py --framing=stream scores the two runs on the last tenth, with the state carried. For each run, the better of
the best and the last checkpoint counts. The script prints one line for the recipe, one for the stream, and one for the recipe
scored in its own framing. If the recipe's framing is documents, our model also reads documents instead of a stream, and the
two runs are scored by documents.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
SPLIT = ["--config.corpus.split=(0.9,0.1)", "--config.train.best=validation", "--config.sample.length=0"]
CORPUS_KEYS = ("name", "path", "tfds", "documents", "data_dir", "lowercase", "keep", "newlines")
OURS = {
    "batch.size": 16,
    "batch.length": 64,
    "model.layers": 2,
    "model.hidden": 256,
    "model.dropout": 0.4,
    "model.dtype": "bfloat16",
    "optim.learning_rate": 5e-3,
    "optim.warmup_steps": 50,
    "train.checkpoint_every": 200,
    "eval.lanes": 8,
    "vocab.source": "corpus",
}
OF_DOCUMENTS = {"batch.framing": "documents", "batch.size": 32, "batch.length": 256, "batch.start_symbol": False}


def train(flags: list[str], workdir: pathlib.Path, seconds: float) -> None:
    """Trains for at most `seconds` of wall time."""
    command = [sys.executable, os.fspath(ROOT / "scripts/train.py"), *flags, f"--workdir={workdir}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    if process.wait() not in (0, 128 + signal.SIGTERM):
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")


def score(workdir: pathlib.Path, framing: str) -> str:
    """Scores the last checkpoint and, if it exists, the best checkpoint. Describes the better result in words."""
    results = []
    for which in ("best", "latest"):
        flags = [f"--workdir={workdir}", f"--framing={framing}", f"--checkpoint={which}"]
        command = [sys.executable, os.fspath(ROOT / "scripts/evaluate.py"), *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            results.append(json.loads(done.stdout.splitlines()[-1]))
    if not results:
        sys.exit(done.stderr)
    best = min(results, key=lambda result: result["nats"])
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    epoch = rows[-1]["epoch"] * best["step"] / rows[-1]["step"]
    return f"{best['nats']:.4f} nats on {best['chars']:,} chars after step {best['step']}, epoch {epoch:.1f}"


def main() -> None:
    recipe, seconds = sys.argv[1], float(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        own, first, ours = (pathlib.Path(folder) / name for name in ("own", "first", "ours"))
        train([f"--config={ROOT / recipe}", *SPLIT, *sys.argv[3:]], own, seconds)
        config = json.loads((own / "config.json").read_text())
        framing = "documents" if config["batch"]["framing"] == "documents" else "stream"
        print(f"{recipe}, {seconds:.0f} s: {score(own, framing)}", flush=True)
        trained_as = config["batch"]["framing"]
        if trained_as != framing:
            print(f"scored in {trained_as}, as it was trained: {score(own, trained_as)}", flush=True)
        corpus = {f"corpus.{key}": config["corpus"][key] for key in CORPUS_KEYS if config["corpus"][key] is not None}
        keys = OURS | (OF_DOCUMENTS if framing == "documents" else {}) | corpus
        flags = [f"--config={ROOT / 'configs/base.py'}", *SPLIT, *(f"--config.{key}={value}" for key, value in keys.items())]
        begin = time.perf_counter()
        train([*flags, "--config.train.steps=300"], first, seconds)
        steps = int(300 * seconds / (time.perf_counter() - begin))  # includes the start-up, so the estimate is low
        train([*flags, f"--config.train.steps={steps}"], ours, seconds)
        print(f"{framing}, {seconds:.0f} s: {score(ours, framing)}", flush=True)


if __name__ == "__main__":
    main()
