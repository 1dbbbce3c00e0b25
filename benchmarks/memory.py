"""Measures the memory of a model's layers for one long sequence, which should grow linearly with its length.

    python benchmarks/memory.py [--quick] [--lengths 8192,16384,32768] [--device cuda --fp16]

The model has the size of wikitext2-cpu, in evaluation, without the softmax over the words. The growth is the peak at a
length divided by the peak at the previous length. A length is skipped if quadratic growth would take more than 4 GiB.
"""

import functools
import logging
import warnings
from pathlib import Path

import torch
from measure import RESULTS, machine, peak_bytes, report
from training import BASELINE, VOCABULARY, Trainee

from wavepos_fairseq.common import commands
from wavepos_fairseq.positions import position_names

MOST = 4 * 2**30


def main():
    parser = commands.parser(__doc__)
    parser.add_argument(
        "--lengths", type=commands.parse_lengths, default="8192,16384,32768", help="default: %(default)s"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--quick", action="store_true", help="lengths 1024 and 2048")
    parser.add_argument("--output", type=Path, help="CSV (default: results/benchmarks/memory-DEVICE.csv)")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # fairseq makes hydra warn
    lengths = [1024, 2048] if args.quick else args.lengths
    archs = {name: f"--arch transformer_lm_wavelet --position-encoding {name}" for name in position_names()}
    rows = []
    for name, arch in {BASELINE: "--arch transformer_lm", **archs}.items():
        arch += f" --max-target-positions {max(lengths)}"
        decoder = Trainee(arch, "wikitext2-cpu", args.device, args.fp16).model.eval().decoder
        before = None  # length and peak
        for length in lengths:
            if before and before[1] * (length / before[0]) ** 2 > MOST:
                break
            tokens = torch.randint(4, VOCABULARY, (1, length), device=args.device)
            with torch.inference_mode():
                peak = peak_bytes(functools.partial(decoder, tokens, features_only=True), args.device)
            growth = round(peak / before[1], 3) if before else ""
            rows.append({"model": name, "length": length, "peak_mib": round(peak / 2**20, 1), "growth": growth})
            before = length, peak
        print(f"{name} done", flush=True)
    title = f"Peak memory without the weights; {machine(args.device)}"
    report(title, rows, args.output or RESULTS / f"memory-{args.device}.csv")


if __name__ == "__main__":
    main()
