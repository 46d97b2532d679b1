#!/usr/bin/env bash
# Installs charlm in .venv, trains configs/quickstart.py, evaluates the best checkpoint and prints three samples.
# If you start the script again, it resumes the run, or reports that the run is done.
# `PYTHON=python3.13 scripts/quickstart.sh` makes .venv with this interpreter, if .venv does not exist yet.
# `ACCELERATOR=cuda12 scripts/quickstart.sh` also installs JAX for NVIDIA GPUs. Other values are cuda13 and tpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh

workdir=runs/quickstart
echo "training configs/quickstart.py into $workdir …"
"$PY" scripts/train.py --config=configs/quickstart.py --workdir="$workdir"

echo
echo "evaluating the best checkpoint on the whole validation split:"
"$PY" scripts/evaluate.py --workdir="$workdir" --split=validation

echo
"$PY" scripts/sample.py --workdir="$workdir" --prompt='ROMEO:' --length=300 --temperature=0.8 --num=3

cat <<END

The run is in $workdir: metrics.jsonl, samples/, checkpoints/. You can try next:
  .venv/bin/python scripts/sample.py --workdir=$workdir --prompt='JULIET:' --temperature=0.5
  .venv/bin/python scripts/evaluate.py --workdir=$workdir --split=train
  .venv/bin/python scripts/train.py --config=configs/quickstart.py --workdir=runs/wider --config.model.hidden=384
END
