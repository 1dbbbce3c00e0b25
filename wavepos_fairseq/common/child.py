"""Runs a Python module in a process that ends with its parent, however that ends.

    python wavepos_fairseq/common/child.py PID MODULE [ARGUMENT ...]

PID is the parent. The module runs as under ``python -m MODULE ARGUMENT ...``. This file is run by its path, because
``-m wavepos_fairseq.common.child`` would import the package before fairseq's --user-dir does.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

_SECONDS_BETWEEN_LOOKS = 1.0


def end_with(parent: int) -> None:
    """Kills this process once its parent has ended.

    Linux does so at once. Elsewhere a thread checks every second, as long as Python lets it run.
    """
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(1, signal.SIGKILL):  # PR_SET_PDEATHSIG; 0 if set
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _kill_without(parent)  # the parent may have ended before the call above


def _watch(parent: int) -> None:
    while True:
        _kill_without(parent)
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _kill_without(parent: int) -> None:
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    sys.path[0] = os.getcwd()  # as with -m, instead of this folder
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
