# Sourced by the scripts of this folder: where the project is (ROOT), which Python runs it (PYTHON), and how the
# environment .venv is made.
# shellcheck shell=bash
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ -x "$ROOT/.venv/bin/python" ]; then
    PYTHON=$ROOT/.venv/bin/python
else
    PYTHON=$(command -v python3)
fi
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# The comment at the top of the calling script is its help.
help_if_asked() {
    case " $* " in
    *" --help "* | *" -h "*)
        sed -n '2,/^[^#]/ { /^#/ s/^# \{0,1\}//p }' "$0"
        exit 0
        ;;
    esac
}

# Makes .venv with the tested versions of everything, unless it is there and no older than setup.py.
ensure_venv() {
    PYTHON=$ROOT/.venv/bin/python
    if [ "$ROOT/.venv/installed" -nt "$ROOT/setup.py" ] && [ "$ROOT/.venv/installed" -nt "$ROOT/constraints.txt" ]; then
        return
    fi
    echo "== installing into .venv (a minute or two; the log is .venv/install.log)"
    [ -x "$PYTHON" ] || python3 -m venv "$ROOT/.venv"
    "$PYTHON" -m pip install -c "$ROOT/constraints.txt" -e "$ROOT[test]" >"$ROOT/.venv/install.log" 2>&1 || {
        tail -n 20 "$ROOT/.venv/install.log" >&2
        echo "error: pip install failed" >&2
        exit 1
    }
    touch "$ROOT/.venv/installed"
}
