#!/usr/bin/env bash
# Installs charlm in .venv, checks style and types, and runs the tests.
# Usage: scripts/test.sh [--slow | --slurm] [arguments for pytest]
# Without an option, the long tests and the tests of SLURM are left out.
# --slow runs the long tests too.
# --slurm runs only the tests of SLURM, which start and stop SLURM on this machine. If SLURM is not installed, this script first
# installs SLURM with apt-get, which needs root.
# To choose the Python interpreter, set the environment variable PYTHON, for example to python3.13. To install JAX for an
# accelerator, set ACCELERATOR to cuda12, cuda13 or tpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
marks=(-m 'not slow and not slurm')
# A test often waits for a process that it has started. So there is one test more than the 2 cores that charlm expects.
spread=(--numprocesses=3 --dist=worksteal)
case "${1:-}" in
--slow)
  marks=(-m 'not slurm')
  shift
  ;;
--slurm)
  marks=(-m slurm)
  spread=() # run the tests in one process, so that SLURM is not started twice at the same time
  shift
  if ! command -v slurmctld >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
      echo "error: SLURM is not installed, and only root can install it with apt-get: install slurm-wlm and munge." >&2
      exit 2
    fi
    echo "installing SLURM …"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null
  fi
  ;;
esac
EXTRAS='[test]'
. scripts/setup.sh

"$PY" -m ruff check .
"$PY" -m ruff format --check --quiet .
"$PY" -m mypy
"$PY" -m pytest "${spread[@]}" "${marks[@]}" "$@"
