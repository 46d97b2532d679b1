#!/usr/bin/env bash
# Installs charlm in .venv, checks style and types, and runs the tests.
# Usage: scripts/test.sh [--slow | --slurm] [arguments for pytest]
# Without an option, the long tests and the tests of SLURM are left out.
# --slow also runs the long tests.
# --slurm runs only the tests that start and stop SLURM on this machine. If SLURM is not installed, this script installs SLURM.
# To install SLURM, the script must run as root.
# The environment variable PYTHON names the Python interpreter that makes a new .venv: PYTHON=python3.13 scripts/test.sh
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
