"""Compares training in fp16 and bf16 to fp32: whether it stays finite, and the ratio of its final loss to fp32's.

    python benchmarks/precision.py [DATA_BIN] [--quick] [--device cuda]

fairseq-train trains the demo preset's model for 1,000 updates of 256 tokens, with each representation in each precision
on the same batches. The checkpoint's loss on the validation set is evaluated in fp32. Finished runs in the folder
--runs are not trained again.

fairseq's own --fp16 and --bf16 do not run on a CPU: fairseq flattens fp16 gradients and handles overflows with CUDA
functions, and takes --bf16 for a TPU. `train` does the same without CUDA.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import warnings
from pathlib import Path
from unittest import mock

import torch
from measure import RESULTS, machine, report

from wavepos_fairseq.common import commands
from wavepos_fairseq.common.files import ROOT, write_json
from wavepos_fairseq.evaluation.perplexity import evaluate
from wavepos_fairseq.lab.configs import Row, load_preset
from wavepos_fairseq.lab.runs import Run
from wavepos_fairseq.positions import position_names

commands.require_fairseq()  # before the imports that would end in a traceback
# ruff: noqa: E402

import fairseq_cli.train
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import wavepos_fairseq.models  # noqa: F401  (registers the architectures and the task)
from wavepos_fairseq.plugin.checkpoint import load_checkpoint
from wavepos_fairseq.plugin.streams import load_stream

PRECISIONS = ("fp32", "fp16", "bf16")
PRESET = dataclasses.replace(load_preset("demo"), tokens_per_update=256)


class Log(logging.Handler):
    """The values that fairseq logs for each update, by name, and the number of updates skipped after an overflow."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.updates, self.overflows = [], 0

    def emit(self, record):
        if record.name == "train_inner":
            self.updates.append({name: float(value) for name, value in json.loads(record.getMessage()).items()})
        self.overflows += "gradient overflow" in str(record.msg)

    @property
    def finite(self):
        return all(math.isfinite(update[name]) for update in self.updates for name in ("loss", "gnorm"))


def train(words, precision):
    """Runs fairseq-train with these arguments in fp32, fp16 or bf16; returns its log."""
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    config.common.fp16, config.common.bf16 = precision == "fp16", precision == "bf16"
    config.common.fp16_no_flatten_grads = config.common.cpu
    log, stay = Log(), mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor)
    logging.getLogger("fairseq").setLevel(logging.INFO)
    with mock.patch.object(logging.getLogger(), "handlers", [log]):
        with stay if config.common.cpu else contextlib.nullcontext():
            fairseq_cli.train.main(config)
    return log


def measure(name, precision, args):
    """Trains and evaluates one run; returns its row."""
    folder = args.runs / f"{name}-{precision}"
    shutil.rmtree(str(folder), ignore_errors=True)  # an interrupted run starts again
    run = Run(PRESET, Row(name, {}, {"name": name}), args.data, folder, int(args.device == "cuda"), 1)
    words = [*run.training_arguments(), "--max-update", str(args.updates), "--log-interval", "1"]
    log = train(words, precision)
    scorer = load_checkpoint(str(run.checkpoint), str(args.data))
    stream = load_stream(str(args.data), "valid", scorer.task.dictionary)
    (cell,) = evaluate(scorer, stream, [PRESET.l_train], ["full"])
    return {
        "position_encoding": name,
        "precision": precision,
        "finite": log.finite and math.isfinite(cell["nll"]),
        "validation_loss": round(cell["nll"], 4),
        "overflows": log.overflows,
        "loss_scale": int(log.updates[-1]["loss_scale"]) if precision == "fp16" else "",
    }


def main():
    parser = commands.parser(__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT / "data" / "demo", metavar="DATA_BIN")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="30 updates of nope and wavelet")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "precision", help="default: runs/precision")
    parser.add_argument("--output", type=Path, help="CSV (default: results/benchmarks/precision-DEVICE.csv)")
    args = parser.parse_args()
    output = (args.output or RESULTS / f"precision-{args.device}.csv").resolve()
    args.data, args.runs = args.data.resolve(), args.runs.resolve()
    warnings.simplefilter("ignore")  # fairseq makes hydra and PyTorch warn
    os.chdir(str(ROOT))  # --user-dir is relative to it
    if args.quick:
        args.updates = 30
    args.runs /= f"{args.device}-{args.updates}"
    rows = []
    for name in ("nope", "wavelet") if args.quick else position_names():
        losses = {}
        for precision in PRECISIONS:
            done = args.runs / f"{name}-{precision}.json"
            if not done.is_file():
                write_json(done, measure(name, precision, args))
                print(f"{name} in {precision} done", flush=True)
            row = json.loads(done.read_text())
            losses[precision] = row["validation_loss"]
            rows.append({**row, "ratio": round(losses[precision] / losses["fp32"], 4)})
    title = f"{args.updates} updates of {PRESET.tokens_per_update} tokens; {machine(args.device)}"
    report(title, rows, output)


if __name__ == "__main__":
    main()
