#!/usr/bin/env bash
# Does everything once, at a small size: installs into .venv, prepares the demo corpus, reproduces Table 1 and prints
# it. It needs Python 3.11, 3.12 or 3.8, a package index, and at most ten minutes on two cores.
. "$(dirname "$(readlink -f "$0")")/env.sh"
if [ $# -gt 0 ]; then
    echo "error: $(basename "$0") takes no arguments, not $1" >&2
    exit 2
fi
cd "$ROOT"

ensure_venv
echo "== preparing the demo corpus: Python's own documentation"
"$PYTHON" -m wavepos_fairseq prepare demo
echo "== reproducing Table 1 on it: twelve small models, trained and evaluated"
"$PYTHON" -m wavepos_fairseq reproduce table1 --preset demo --data data/demo --jobs "$(nproc)"
