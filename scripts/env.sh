# Every script sources this first. It runs the script in bash, prints its help, finds the project (ROOT) and the Python
# (PYTHON, unless it is set), and can make the environment .venv. Up to the exec any shell can read it: sh scripts/train.sh
# shellcheck shell=bash
[ -n "${BASH_VERSION:-}" ] || exec bash "${ZSH_ARGZERO:-$0}" "$@"
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case $ROOT in
*:*)
    echo "error: $ROOT contains a colon, which separates the folders of PYTHONPATH; move the project elsewhere" >&2
    exit 2
    ;;
esac

if [ -z "${PYTHON:-}" ]; then
    PYTHON=$ROOT/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# The comment at the top of the calling script is its help.
for word in "$@"; do
    case $word in
    --help | -h)
        sed -n '2,/^[^#]/ { /^#/ s/^# \{0,1\}//p }' "$0"
        exit 0
        ;;
    esac
done

# The first Python found that fairseq supports.
supported_python() {
    for python in python3 python3.11 python3.12 python3.8; do
        if "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 8), (3, 11), (3, 12)])' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "error: fairseq needs Python 3.11, 3.12 or 3.8, but none of them is on the PATH" >&2
    return 1
}

venv_is_whole() {
    [ "$ROOT/.venv/installed" -nt "$ROOT/setup.py" ] && [ "$ROOT/.venv/installed" -nt "$ROOT/constraints.txt" ]
}

# Makes .venv with the tested versions of everything, unless it exists and is newer than setup.py and constraints.txt.
ensure_venv() {
    PYTHON=$ROOT/.venv/bin/python
    venv_is_whole || make_venv 9>"$ROOT/.venv.lock" || exit 1
}

# ve-fairseq brings torchaudio for speech. Its wheel is for CUDA: beside a PyTorch for CPUs it does not load, and then
# transformers, which imports it where it is installed, does not either.
remove_broken_torchaudio() {
    "$PYTHON" -c 'import torchaudio' 2>/dev/null || "$PYTHON" -m pip uninstall --yes torchaudio
}

# One script at a time. A new .venv is marked as unfinished until it is whole; one that a killed script left unfinished
# is made anew. Nothing is removed from any other .venv, which may be the user's own.
make_venv() {
    python=$(supported_python) || return
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || return
    if venv_is_whole; then return; fi # another script made it while it held the lock
    echo "== installing into .venv (a minute or two; the log is .venv/install.log)"
    if [ -z "$(ls -A "$ROOT/.venv" 2>/dev/null)" ]; then
        mkdir -p "$ROOT/.venv" && touch "$ROOT/.venv/unfinished" || return
    fi
    if [ -e "$ROOT/.venv/unfinished" ]; then
        (cd "$ROOT/.venv" && find . -mindepth 1 ! -path ./unfinished -delete) || return
        "$python" -m venv "$ROOT/.venv" || return
    fi
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        echo "error: $ROOT/.venv has no working pip; remove it, and this script makes a new one" >&2
        return 1
    fi
    "$PYTHON" -m pip install --no-compile -c "$ROOT/constraints.txt" -e "${ROOT}[test]" \
        >"$ROOT/.venv/install.log" 2>&1 || {
        tail -n 20 "$ROOT/.venv/install.log" >&2
        echo "error: pip install failed" >&2
        return 1
    }
    "$PYTHON" -m compileall -qq -j 0 "$ROOT/.venv/lib" || true # on all cores, where pip compiles on one; templates fail
    remove_broken_torchaudio >>"$ROOT/.venv/install.log" 2>&1 || return
    touch "$ROOT/.venv/installed" && rm -f "$ROOT/.venv/unfinished"
}
