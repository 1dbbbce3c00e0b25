#!/usr/bin/env bash
# What to run on a machine with a GPU, in steps of eight minutes each at the most; nothing is downloaded.
#
#   benchmarks/gpu.sh right [PYTHON]      the kernel's tests on the hardware; its errors beside flash attention's
#   benchmarks/gpu.sh fast [PYTHON]       its time over flash attention's, beside FlexAttention and others; tile sizes
#   benchmarks/gpu.sh paper [PYTHON]      100 updates of wikitext103-512: tokens a second, memory; no corpus needed
#   benchmarks/gpu.sh table1 [PYTHON]     Table 1 of wikitext2-chars-gpu; again: the rows that are missing
#   benchmarks/gpu.sh rest [PYTHON]       all representations: the operator and training steps
#
#   --dry-run    any step, small and on the CPU, the kernel in Triton's interpreter
#
# What comes out is in the folder $OUT (default: results/benchmarks; --dry-run: a new folder), with a log of the step. If a
# part fails, the others go on, and the exit status is not 0. table1 reads data/wikitext-2-characters.
. "$(dirname "$(readlink -f "$0")")/../scripts/env.sh"

here=$PWD
wrong() {
    echo "error: gpu.sh takes a step (right, fast, paper, table1 or rest), the name of one Python and --dry-run; $1" >&2
    exit 2
}
step='' python='' dry=()
for word in "$@"; do
    case $word in
    --dry-run) dry=(--dry-run --seconds 3600) ;; # a CPU may be busy
    -*) wrong "not $word" ;;
    *) if [ -z "$step" ]; then step=$word; elif [ -z "$python" ]; then python=$word; else wrong "not $word"; fi ;;
    esac
done
case $step in
right | fast | paper | table1 | rest) ;;
'') wrong "no step is given" ;;
*) wrong "not $step" ;;
esac
python=${python:-python3}
command -v -- "$python" >/dev/null || wrong "not $python"
case $python in
/*) ;;
*/*) python=$here/$python ;;
esac
cd "$ROOT"

if [ ${#dry[@]} -gt 0 ]; then
    out=${OUT:-$(mktemp -d)} device=cpu
    tests=(-k "test_output_and_gradients_are_the_formulas and 33-33")
    quick=(--sizes 40x1 --head-dim 16 --rounds 2) operator=("${quick[@]}") training=(--quick)
    export TRITON_INTERPRET=1 OMP_NUM_THREADS=1
else
    out=${OUT:-$ROOT/results/benchmarks} device=cuda tests=()
    if "$python" -c 'import xdist' 2>/dev/null; then tests=(-n 12); fi # most of the time goes into compiling
    quick=(--quick) operator=(--dtype bfloat16 --sizes "512x32,1024x16,2048x8,4096x4,8192x2") training=(--fp16)
    export TRITON_INTERPRET=0
fi
case $out in
/*) ;;
*) out=$here/$out ;;
esac
export PYTHONUNBUFFERED=1
mkdir -p "$out"

failed=0
part() { # SECONDS FILE ARGUMENT ...
    echo "== ${*:2}"
    timeout -k 10 "$((${#dry[@]} ? 0 : $1))" "$python" "${@:2}" || {
        echo "error: status $? (124: more than $1 seconds) of ${*:2}"
        failed=1
    }
}

parts() {
    case $step in
    right)
        part 240 -m pytest -v "${tests[@]}" tests/test_triton.py
        part 160 benchmarks/kernel.py errors --seconds 140 "${dry[@]}" --output "$out/kernel-errors-$device.csv"
        part 70 benchmarks/attention.py --device "$device" "${quick[@]}" --output "$out/attention-quick-$device.csv"
        ;;
    fast) part 470 benchmarks/kernel.py speed --seconds 440 "${dry[@]}" --output "$out/kernel-speed-$device.csv" ;;
    paper) part 470 benchmarks/paper.py updates --seconds 440 "${dry[@]}" --out "$out" ;;
    table1) part 470 benchmarks/paper.py table1 --seconds 440 "${dry[@]}" --out "$out" ;;
    rest)
        part 270 benchmarks/attention.py --device "$device" "${operator[@]}" --output "$out/attention-$device.csv"
        part 200 benchmarks/training.py --device "$device" "${training[@]}" --output "$out/training-$device.csv"
        ;;
    esac
    return $failed
}

parts 2>&1 | tee "$out/gpu-$step.log"
