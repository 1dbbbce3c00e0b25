#!/usr/bin/env bash
# On a machine with a GPU, in one command: the Triton kernel's tests on the hardware, then the benchmarks there.
#
#   benchmarks/gpu.sh [PYTHON]      results/benchmarks/attention-cuda.csv, training-cuda.csv
. "$(dirname "$(readlink -f "$0")")/../scripts/env.sh"

python=${1:-python3}
if [ $# -gt 1 ] || ! command -v -- "$python" >/dev/null; then
    echo "error: gpu.sh takes the name of one Python, not ${*:-$python}" >&2
    exit 2
fi
case $python in
/*) ;;
*/*) python=$PWD/$python ;;
esac
cd "$ROOT"

"$python" -m pytest -q tests/test_triton.py
"$python" benchmarks/attention.py --device cuda --dtype bfloat16 --sizes 512x32,1024x16,2048x8,4096x4,8192x2
"$python" benchmarks/training.py --device cuda --fp16
