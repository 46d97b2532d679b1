# quickstart.sh and test.sh source this file in the root of the repository. It makes the virtual environment .venv if .venv does
# not exist, and installs charlm into it. The file reads three variables and sets one:
#   PYTHON (read): the interpreter that makes .venv; the default is python3
#   ACCELERATOR (read): the device for which JAX is installed: cuda12, cuda13 or tpu; the default is only the CPU
#   EXTRAS (read): the optional dependencies of charlm to install, such as [test]; the default is none
#   PY (set): the interpreter of .venv

fail() {
  echo "error: $1" >&2
  exit 2
}

version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

PY=.venv/bin/python
EXTRAS=${EXTRAS:-}
ACCELERATOR=${ACCELERATOR:-}
duration='half a minute'
case "$ACCELERATOR" in
'') ;;
cuda12 | cuda13 | tpu)
  EXTRAS=${EXTRAS:+${EXTRAS%]},} # [test] becomes [test,
  EXTRAS="${EXTRAS:-[}$ACCELERATOR]"
  duration="several minutes, because the packages for $ACCELERATOR are large"
  for other in cuda12 cuda13 tpu; do
    if [ "$other" != "$ACCELERATOR" ] && compgen -G ".venv/installed*$other]" >/dev/null; then
      fail "ACCELERATOR=$ACCELERATOR: .venv already has JAX for $other: remove .venv to make a new one."
    fi
  done
  ;;
*) fail "ACCELERATOR=$ACCELERATOR: must be cuda12, cuda13 or tpu; leave it out for the CPU." ;;
esac
if [ ! -e "$PY" ]; then
  python=${PYTHON:-python3}
  command -v "$python" >/dev/null || fail "PYTHON=$python was not found: install Python 3.11 or newer, or set e.g. PYTHON=python3.13."
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is Python $(version_of "$python"), but charlm needs 3.11 or newer: set e.g. PYTHON=python3.13."
  echo "making .venv with Python $(version_of "$python") …"
  "$python" -m venv .venv || {
    rm -rf .venv
    fail "$python can't make a virtual environment: on Debian, run 'apt-get install python3-venv' first."
  }
elif [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$(version_of "$PY")" ]; then
  fail "PYTHON=$PYTHON differs from the Python $(version_of "$PY") of .venv: remove .venv to make a new one."
elif ! "$PY" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  fail ".venv has Python $(version_of "$PY"), but charlm needs 3.11 or newer: remove .venv to make a new one."
fi

# Install charlm only if pyproject.toml has changed since the last installation with the same EXTRAS and ACCELERATOR.
stamp=".venv/installed$EXTRAS"
if ! cmp -s pyproject.toml "$stamp"; then
  echo "installing charlm$EXTRAS ($duration) …"
  "$PY" -m pip install --quiet --disable-pip-version-check --editable ".$EXTRAS" ||
    fail "pip could not install charlm: the message of pip above says why."
  cp pyproject.toml "$stamp"
fi
