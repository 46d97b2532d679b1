#!/usr/bin/env bash
# Sets everything up, then lints and tests. Usage: scripts/test.sh [--slow] [arguments for pytest]
# --slow runs the long tests too. PYTHON=python3.13 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
marks=(-m 'not slow')
if [ "${1:-}" = --slow ]; then
  marks=()
  shift
fi
EXTRAS='[test]'
. scripts/setup.sh

"$PY" -m ruff check .
"$PY" -m ruff format --check --quiet .
"$PY" -m pytest --numprocesses=2 --dist=worksteal "${marks[@]}" "$@"
