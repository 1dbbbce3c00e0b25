"""Runs the paper's experiment on one GPU: its first updates at full size, or Table 1 at a size that takes minutes.

    python benchmarks/paper.py updates [--dry-run]    100 updates of wikitext103-512: tokens a second and memory
    python benchmarks/paper.py table1 [--dry-run]     Table 1 of wikitext2-chars-gpu, rows side by side; again: goes on

Both end within --seconds. `updates` needs no corpus. It draws words as frequent as 1 / n, of as many types as
WikiText-103 has; speed and memory are those that fairseq-train logs. `table1` reads data/wikitext-2-characters
(scripts/prepare_data.sh wikitext-2 --characters). It packs what its runs found, without the checkpoints; where that is
unpacked, in the project's folder, these runs are done. `--dry-run` is small and on the CPU.
"""

import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from measure import LEFT_OUT, RESULTS, line_by_line, machine

from wavepos_fairseq.common import commands
from wavepos_fairseq.common.files import ROOT

commands.require_fairseq()  # before the imports that would end in a traceback
# ruff: noqa: E402

from fairseq.data import Dictionary, indexed_dataset

from wavepos_fairseq.attention import triton as kernel
from wavepos_fairseq.data import WIKITEXT
from wavepos_fairseq.lab import experiments
from wavepos_fairseq.lab.configs import find_row, load_preset, load_table
from wavepos_fairseq.lab.runs import Run

UPDATES, PRESET, JOBS = 100, "wikitext2-chars-gpu", 6
TRAINED = [("ricker", "auto"), ("nope", "auto"), ("alibi", "auto"), ("trans-xl", "auto"), ("ricker", "blockwise")]
COLUMNS = ("card", "row", "implementation", "updates", "tokens_per_second", "first_quartile", "third_quartile")
COLUMNS += ("peak_gib", "loss", "note")
SMALL = {  # what --dry-run changes in a preset
    "l_train": 16,
    "lengths": [8, 16, 24],
    "gpus": 0,
    "tokens_per_update": 64,
    "tokens_per_device": 32,
}
SMALL_MODEL = {f"decoder-{part}-dim": 32 for part in ("embed", "input", "output")}
SMALL_MODEL.update({"decoder-ffn-embed-dim": 64, "decoder-layers": 1, "decoder-attention-heads": 2})
SMALL_MODEL.update({"max-update": 4, "log-interval": 1, "num-workers": 0})
CLUSTERS = {f"adaptive-{part}-cutoff": "20,40" for part in ("input", "softmax")}


def small(name):
    """The preset, with nothing that needs a GPU and as little as possible of everything."""
    preset = load_preset(name)
    train = {option: value for option, value in preset.train.items() if option not in ("fp16", "tensorboard-logdir")}
    train.update(SMALL_MODEL, **(CLUSTERS if train["criterion"] == "adaptive_loss" else {}))
    evaluate = {option: value for option, value in preset.evaluate.items() if option != "fp16"}
    if "stride" in evaluate:
        evaluate["stride"] = 4
    return dataclasses.replace(preset, **SMALL, corpus="text", train=train, evaluate=evaluate)


def write_words(folder, types, tokens):
    """A data-bin of `types` words, the n-th as frequent as 1 / n: `tokens` of them in train, 2,000 in valid."""
    dictionary = Dictionary()
    for number in range(types - len(dictionary)):
        dictionary.add_symbol(str(number), n=types - number)
    folder.mkdir(parents=True, exist_ok=True)
    dictionary.save(str(folder / "dict.txt"))
    frequency, drawn = 1 / torch.arange(1, types - dictionary.nspecial + 1).double(), torch.Generator().manual_seed(1)
    for split, number in (("train", tokens), ("valid", 2000)):
        words = torch.multinomial(frequency, number, True, generator=drawn) + dictionary.nspecial
        path = str(folder / split)
        builder = indexed_dataset.make_builder(f"{path}.bin", "mmap", vocab_size=types)
        for line in words.split(100):
            builder.add_item(torch.cat((line, torch.tensor([dictionary.eos()]))).int())
        builder.finalize(f"{path}.idx")


# 100 updates at the paper's size


def updates(args):
    """Returns 1 if a row has no number."""
    preset, types, made, trained = load_preset("wikitext103-512"), WIKITEXT["wikitext-103"].types, UPDATES, TRAINED
    if args.dry_run:
        usable = kernel.why_unsupported(torch.empty(1, 1, 16)) is None
        preset, types, made, trained = small(preset.name), 60, 4, [("ricker", "triton" if usable else "auto")]
    failed = 0
    with tempfile.TemporaryDirectory() as folder, line_by_line(args.out / "updates.csv", COLUMNS) as add:
        write_words(Path(folder, "data"), types, (made + 1) * preset.tokens_per_update)
        for name, implementation in trained:
            run = Run(preset, find_row(name), Path(folder, "data"), Path(folder, name), int(not args.dry_run), seed=1)
            words = [*run.training_arguments(), "--attention-implementation", implementation]
            words += ["--max-update", str(made), "--log-interval", str(max(1, made // 10)), "--no-save"]
            found = measure([*words, "--disable-validation"], args)
            failed += "tokens_per_second" not in found
            add(card=args.card, row=name, implementation=implementation, **found)
    return int(failed > 0)


def measure(words, args):
    """The columns of one fairseq-train: medians of what it logs in the second half of its updates."""
    left = args.ends - time.monotonic()
    command = [sys.executable, "-m", "fairseq_cli.train", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        if left <= 0:
            raise subprocess.TimeoutExpired(command, left)
        done = subprocess.run(
            command, cwd=str(ROOT), env=environment, stdout=-1, stderr=subprocess.STDOUT, timeout=left, text=True
        )
    except subprocess.TimeoutExpired:
        return {"note": LEFT_OUT}
    logged = [json.loads(line[line.index("{") :]) for line in done.stdout.splitlines() if '"num_updates"' in line]
    steady = [line for line in logged if "wps" in line][len(logged) // 2 :]
    if done.returncode or not steady:
        return {"note": f"status {done.returncode}: " + " | ".join(done.stdout.splitlines()[-3:])}
    speeds = sorted(float(line["wps"]) for line in steady)
    low, middle, high = statistics.quantiles(speeds, n=4) if len(speeds) > 1 else 3 * speeds
    found = {"updates": int(logged[-1]["num_updates"]), "tokens_per_second": round(middle)}
    found.update(first_quartile=round(low), third_quartile=round(high), loss=float(logged[-1]["loss"]))
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        found["peak_gib"] = round(total - min(float(line["gb_free"]) for line in steady), 1)
    return found


# Table 1


def table1(args):
    """The status of scripts/reproduce.sh, which is ended as by Ctrl-C when the time is over."""
    with contextlib.ExitStack() as stack:
        words = ["table1", "--preset", PRESET, "--runs", str(args.runs)]
        if args.dry_run:
            title, rows = load_table("table1")
            rows = [row for row in rows if row.name in ("nope", "ricker")]
            stack.enter_context(mock.patch.object(experiments, "load_preset", small))
            stack.enter_context(mock.patch.object(experiments, "load_table", lambda name: (title, rows)))
            write_words(args.out / "data", 60, 5 * 64)
            words += ["--data", str(args.out / "data")]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(["0"] * JOBS)  # a GPU for each job, and all are the same one
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(max(1, int(args.ends - time.monotonic())))
        status = experiments.main(["reproduce", *words, "--jobs", str(JOBS), "--results", str(args.out)])
        signal.alarm(0)
        experiments.main(["status", *words])
    args.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(str(args.out / f"runs-{PRESET}.tar.gz"), "w:gz") as packed:
        for path in sorted((args.runs / PRESET).glob("*/*")):
            if path.suffix in (".json", ".log"):
                packed.add(str(path), f"runs/{PRESET}/{path.parent.name}/{path.name}")
    return status


def main():
    parser = commands.parser(__doc__)
    parser.add_argument("what", choices=("updates", "table1"))
    parser.add_argument("--seconds", type=commands.parse_count, default=400, help="for all (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: results/benchmarks)")
    args = parser.parse_args()
    args.ends = time.monotonic() + args.seconds
    if not args.dry_run and not torch.cuda.is_available():
        print("error: PyTorch sees no GPU; accepted without one is --dry-run", file=sys.stderr)
        return 2
    args.card = "CPU" if args.dry_run else torch.cuda.get_device_name()
    args.runs = (args.out if args.dry_run else ROOT) / "runs"
    print(machine("cpu" if args.dry_run else "cuda"), flush=True)
    return {"updates": updates, "table1": table1}[args.what](args)


if __name__ == "__main__":
    sys.exit(main())
