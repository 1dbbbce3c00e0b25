#!/usr/bin/env bash
# Runs ruff, mypy and pytest, in a .venv that it makes if needed. Arguments go to pytest: scripts/test.sh -k alibi
. "$(dirname "$(readlink -f "$0")")/env.sh"
cd "$ROOT"

ensure_venv
echo "== ruff"
"$PYTHON" -m ruff check .
echo "== mypy"
"$PYTHON" -m mypy
echo "== pytest"
workers=$(($(nproc) + 1)) # one more than cores, because many tests wait; before the next line, which changes nproc
export OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= # because many tests start a Python of their own
exec "$PYTHON" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
