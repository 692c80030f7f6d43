#!/usr/bin/env bash
# Everything that must hold before a change goes in: lint, format, the whole test suite.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]      e.g. bash launch/test.sh tests/launch -x
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

ensure_venv test,deepspeed
cd -- "$ROOT"
"$VENV/bin/python" -m ruff check
"$VENV/bin/python" -m ruff format --check
# As many files of tests at once as there are cores, each on one thread; a file's tests share what it sets up.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$VENV/bin/python" -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
