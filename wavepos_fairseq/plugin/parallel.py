"""Runs fairseq-train as several CPU processes, which share an update's batches.

    torchrun --standalone --nproc_per_node 2 -m wavepos_fairseq.plugin.parallel DATA --cpu ...

The options are fairseq-train's; --max-tokens is what one process takes at a time. fairseq assigns ranks to GPUs, so
each process gets its own rank here.
"""

import os
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from ..common import commands

commands.require_fairseq()  # before the imports that would end in a traceback
# ruff: noqa: E402

from fairseq_cli.train import cli_main

from .. import models  # noqa: F401  (registers all: fairseq's --user-dir finds the package imported already)
from ..common.child import end_with

if __name__ == "__main__":
    end_with(os.getppid())  # end with torchrun, which is the run's child
    if "--user-dir" in sys.argv:  # imported above; fairseq takes an installed package for another one
        start = sys.argv.index("--user-dir")
        del sys.argv[start : start + 2]
    sys.argv += ["--distributed-world-size", os.environ["WORLD_SIZE"], "--distributed-rank", os.environ["RANK"]]
    sys.argv += ["--distributed-init-method", "env://", "--distributed-no-spawn", "--distributed-backend", "gloo"]
    sys.argv += ["--load-checkpoint-on-all-dp-ranks"]  # PyTorch 2.6 refuses fairseq's broadcast of it
    record(cli_main)()  # torchrun shows its errors
