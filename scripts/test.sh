#!/usr/bin/env bash
# Installs charlm in .venv, checks style and types, and runs the tests.
# Usage: scripts/test.sh [--slow | --slurm] [arguments for pytest]
# --slow also runs the long tests.
# --slurm runs only the tests that start and stop SLURM on this machine. If SLURM is not installed, this script installs SLURM.
# The installation needs root.
# PYTHON=python3.13 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
marks=(-m 'not slow and not slurm')
spread=(--numprocesses=2 --dist=worksteal)
case "${1:-}" in
--slow)
  marks=(-m 'not slurm')
  shift
  ;;
--slurm)
  marks=(-m slurm)
  spread=() # run one test process, so that only one SLURM starts
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
