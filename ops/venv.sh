#!/bin/sh
# Make the virtual environment at $1 with a Python ≥ 3.11 that can ($2, or the first one found).
# One that works is left alone; one whose Python is gone or too old is made anew.
set -eu

venv=$1
wanted=${2:-}
check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'

if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c "$check" 2>/dev/null \
    && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "==> $venv is there: $("$venv/bin/python" --version)"
    exit 0
fi

seen=""
for python in ${wanted:-python3 python3.14 python3.13 python3.12 python3.11}; do
    version=$("$python" --version 2>/dev/null) || continue
    if "$python" -c "$check" 2>/dev/null; then
        echo "==> making $venv with $version ($(command -v "$python"))"
        exec "$python" -m venv --clear "$venv"
    fi
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        number=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        seen="$seen
  $python is $version, but without its venv module: on Debian and Ubuntu,
  apt-get install python$number-venv adds it"
    else
        seen="$seen
  $python is $version, which is too old"
    fi
done

echo "Pippin needs Python 3.11 or newer with its venv module.${seen:-
  There is no ${wanted:-python3} here.}
On a Mac, brew install python@3.12 brings one; make PYTHON=/path/to/python3 picks one." >&2
exit 1
