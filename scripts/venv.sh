#!/bin/sh
# Make the virtual environment $2 with the interpreter $1 and put uv into it.
set -eu
python=$1
venv=$2

fail() {
    printf 'specfarm: %s\n' "$1" >&2
    exit 3
}

modern='import sys; sys.exit(sys.version_info < (3, 11))'

[ -n "$python" ] || fail 'no Python 3.11 or newer found; install one, or say where it is: make setup PYTHON=/path/to/python3.11'
"$python" -c '' 2>/dev/null || fail "$python does not run; say where a Python 3.11 or newer is: make setup PYTHON=/path/to/python3.11"
"$python" -c "$modern" || fail "$("$python" -V) is too old; say where a Python 3.11 or newer is: make setup PYTHON=/path/to/python3.11"

if ! "$venv/bin/python" -c "$modern" 2>/dev/null || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments; on Debian or Ubuntu: sudo apt-get install python3-venv"
    "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -m pip install --quiet 'uv>=0.8'
