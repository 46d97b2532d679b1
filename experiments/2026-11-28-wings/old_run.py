"""Resumes the old run of the tests with two checkouts, and prints what differs, bit for bit.

git worktree add /tmp/before 0e34d7a && git worktree add /tmp/after HEAD
.venv/bin/python experiments/2026-11-28-wings/old_run.py /tmp/before /tmp/after
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
from faults.checks import differences, read_rows  # noqa: E402
from faults.runs import as_flags, make_text  # noqa: E402
from test_old_run import OLD_RUN, OVERRIDES  # noqa: E402


def resumed(checkout: str, corpus: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    """Resumes a copy of the old run. Returns the output of evaluate and sample."""
    shutil.copytree(OLD_RUN / "run", workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["corpus"]["path"] = os.fspath(corpus)
    del config["seal"]  # the seal no longer matches the changed config
    (workdir / "config.json").write_text(json.dumps(config))
    run = f"--workdir={workdir}"

    def output(program: str, *flags: str) -> str:
        command = [sys.executable, f"{checkout}/scripts/{program}.py", *flags]
        environment = {**os.environ, "PYTHONPATH": checkout}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    train = [f"--config={checkout}/configs/tiny.py", run, *as_flags(OVERRIDES | {"corpus.path": corpus})]
    assert "resuming at step 17 of 30" in output("train", *train)
    nats = str(json.loads(output("evaluate", run).splitlines()[-1])["nats"])
    return [nats, output("sample", run, "--checkpoint=latest", "--length=60", "--seed=3", "--prompt=ab")]


def main(before: str, after: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = pathlib.Path(folder) / "made_up.txt"
        corpus.write_text(make_text(8000), encoding="utf-8")
        workdirs = [pathlib.Path(folder) / name for name in ("before", "after")]
        outputs = [resumed(before, corpus, workdirs[0]), resumed(after, corpus, workdirs[1])]
        print(f"{len(read_rows(workdirs[0]))} rows of metrics; nats {outputs[0][0]} before, {outputs[1][0]} after")
        found = differences(workdirs[1], workdirs[0]) + ["evaluation or sample"] * (outputs[0] != outputs[1])
        print(f"different: {', '.join(found) or 'nothing'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
