"""Evaluates the ALiBi release's WikiText-103 models beside the paper's ALiBi row and Press et al.'s own numbers.

    python -m wavepos_fairseq.lab.alibi_release 512

Press et al. (2022) trained them with the hyperparameters of the paper's rows. The paper has two of their eight training
lengths. The release gives no checksums. The file's length, and the checksums inside PyTorch's newer format, show that
it is complete; its SHA-256 is printed.
"""

import json
import math
import pickle
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import pandas as pd
import torch

from ..common import commands
from ..common.files import PAPER, ROOT, shown_path
from ..data import DataError, prepare
from ..data.corpus import say
from ..data.download import fetch_file, file_digest, file_size
from ..plugin import unpickling
from . import evaluate
from .results import CELL, read_press
from .tables import PAPER_CORPUS

# From the README of github.com/ofirpress/attention_with_linear_biases.
MIRRORS = ("https://dl.fbaipublicfiles.com/train_short_test_long/wt103/",)
RELEASED = (64, 128, 256, 512, 1024, 1536, 2048, 3072)
"""Training lengths of the models. Press et al. (Table 5) evaluated each at its own length and at the longer ones."""


def released_checkpoint(l_train: int, copy: Optional[Path]) -> Path:
    """The model trained at `l_train`: the local copy, or a download from `MIRRORS`. DataError if neither exists."""
    name = f"alibi_wt103_L{l_train}.pt"
    if copy is None:
        urls = [f"{mirror}{name}" for mirror in MIRRORS]
        path = fetch_file(
            ROOT / "data" / ".downloads" / name, urls, check_format, "--from takes a local copy", by_length=True
        )
    elif copy.is_file():
        path = copy
        check_format(path)
    else:
        raise DataError(f"--from {copy} does not exist")
    say(
        f"{shown_path(path)}: {file_size(path):,} bytes, SHA-256 {file_digest(path, 'sha256')} (the release gives none)"
    )
    return path


def check_format(path: Path) -> None:
    """DataError unless torch.save wrote the file, in its format or the one before 1.6. Nothing is unpickled."""
    magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
    with path.open("rb") as file:
        if file.read(len(magic)) == magic:
            return
    try:
        if not unpickling.sound_records(path):
            raise pickle.UnpicklingError("it does not begin like one")
    except (pickle.UnpicklingError, unpickling.Refused) as error:
        raise DataError(f"{path.name} is not a PyTorch file, or not a whole one: {error}") from error


def papers_row() -> pd.DataFrame:
    return pd.read_csv(PAPER / "table1.csv").query("method == 'ALiBi'")[[*CELL, "perplexity"]]


def evaluated_lengths(l_train: int) -> List[int]:
    """Those of Press et al.'s Table 5 and of the paper's row."""
    of_paper = papers_row().query(f"l_train == {l_train}").sequence_length
    return sorted({*of_paper, *(length for length in RELEASED if length >= l_train)})


def beside_the_papers(cells: List[Dict[str, Any]], subset: str) -> pd.DataFrame:
    """The evaluation's perplexities beside published ones of the same split, L_train, length and inference.

    Where there is none it is NaN; the paper has the split valid only.
    """
    measured, press = pd.DataFrame(cells)[[*CELL, "stride", "perplexity"]].fillna({"stride": 0}), read_press(subset)
    paper = papers_row() if subset == "valid" else papers_row().head(0)
    table = measured.merge(paper, "left", on=CELL, suffixes=("", " of the paper"))
    where = table[[*CELL, "stride"]].itertuples(index=False, name=None)
    of_press = [press.get(("ALiBi", *cell), math.nan) for cell in where]
    return table.drop(columns="stride").assign(**{"perplexity of Press et al.": of_press})


def main(arguments=None) -> int:
    parser = commands.parser(
        __doc__,
        prog="python -m wavepos_fairseq.lab.alibi_release",
        epilog="All other options are the evaluation's: --cpu, --fp16, --max-tokens, --subset, --trust-checkpoint.",
        allow_abbrev=False,
    )
    parser.add_argument("l_train", type=int, choices=RELEASED, help="training length of the model (tokens)")
    parser.add_argument("--from", dest="copy", type=Path, metavar="FILE", help="the checkpoint (default: downloaded)")
    parser.add_argument("--data", type=Path, help="data-bin of WikiText-103 (default: data/wikitext-103, prepared)")
    parser.add_argument("--output", type=Path, help="results file (default: runs/alibi-release/L_TRAIN.json)")
    args, options = parser.parse_known_args(arguments)
    output = args.output or ROOT / "runs" / "alibi-release" / f"{args.l_train}.json"
    options = ["--output", str(output), "--lengths", ",".join(map(str, evaluated_lengths(args.l_train))), *options]
    evaluating = evaluate.parser()
    evaluating.error = parser.error  # type: ignore[method-assign]
    evaluating.parse_args(["DATA_BIN", "--path", "CHECKPOINT", *options])  # refuse wrong options before downloads
    commands.require_fairseq()
    try:
        data = args.data or prepare(PAPER_CORPUS, dest=ROOT / "data")
        checkpoint = released_checkpoint(args.l_train, args.copy)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    status = evaluate.main([str(data), "--path", str(checkpoint), "--position-encoding", "alibi", *options])
    if status == 0 and output.is_file():  # not a pipe or device
        evaluated = json.loads(output.read_text(encoding="utf-8"))
        table = beside_the_papers(evaluated["cells"], evaluated["subset"]).astype(object)
        print(table.where(table.notna(), None).to_markdown(index=False, floatfmt=".2f", missingval="–"))
    return status


if __name__ == "__main__":
    sys.exit(main())
