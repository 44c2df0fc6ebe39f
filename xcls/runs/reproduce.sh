#!/usr/bin/env bash
# @title@
#
#   git clone <this project> again && cd again && git checkout @shown@ && bash <where this file is>/reproduce.sh
#
# Needs Python 3.10 or newer; the rest is made below. PYTHON=… uses an environment of your own. Data that lie
# elsewhere: bash reproduce.sh dataset.path=/their/folder. On the same CPU type, torch version and thread count the
# numbers are the same to the bit; elsewhere every score is to be within @tolerance@ (TOLERANCE=… sets another bound).
set -euo pipefail
clone() { cd "$1" && until [ -f run.py ] && [ -d xcls ]; do [ "$PWD" != / ] || return 1; cd ..; done && pwd; }
home=$(clone "$PWD") || home=$(clone "$(dirname "${BASH_SOURCE[0]}")") || {
  echo "reproduce.sh: start me inside a clone of the project" >&2; exit 2; }
cd "$home"
unset XCLS_RUNS  # this clone gets the runs
commit=@commit@
here=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$commit" ] || [ "$commit" = "$here" ] || echo "reproduce.sh: made at commit $commit, this is $here" >&2
export GIT_CEILING_DIRECTORIES=$(dirname "$home")  # no repository around this one is meant
lay_down() {  # the changes that the runs were made with, unless they are here already
  if changes | git apply --reverse --check 2>/dev/null; then return; fi
  changes | git apply --whitespace=nowarn || {
    echo "reproduce.sh: the changes that these runs were made with do not fit here: git checkout $commit" >&2; exit 2; }
}
@sources@if [ -z "${PYTHON:-}" ]; then
  make setup  # .venv with the exact versions of requirements.lock
  PYTHON=.venv/bin/python
fi
expected() { cat <<'EXPECTED'
@expected@
EXPECTED
}

# The data must be the same before any work begins.
expected | "$PYTHON" -m xcls.report.reproduce before "$@"

@commands@
# Are the numbers the same?
expected | "$PYTHON" -m xcls.report.reproduce after
@report@
