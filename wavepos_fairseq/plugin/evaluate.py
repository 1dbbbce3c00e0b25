"""The perplexities of a checkpoint of fairseq (see `lab.evaluate` for the command).

Importing this module imports neither PyTorch nor fairseq.
"""

import argparse
import csv
import io
import json
import math
from pathlib import Path
from typing import Any, Dict, List

from ..common.files import write_whole


def write_lines(path: Path, scored: List[Dict[str, Any]]) -> None:
    """Writes the lines of `evaluate_lines`: CSV with a header if the file's name ends so, JSON lines otherwise."""
    text = io.StringIO()
    if path.suffix == ".csv":
        table = csv.DictWriter(text, list(scored[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(scored)
    else:
        text.writelines(json.dumps(line) + "\n" for line in scored)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.getvalue())


def evaluate_checkpoint(args: argparse.Namespace) -> Dict[str, Any]:
    """What --output holds, of the arguments that `lab.evaluate` accepts. Raises ValueError and OSError."""
    import fairseq  # here, because these imports take seconds
    import torch

    from ..evaluation.perplexity import evaluate, evaluate_lines
    from ..evaluation.record import made_by, shown
    from ..evaluation.statistics import perplexity_of
    from ..models.transformer_lm_wavelet import errors_in_flags
    from .checkpoint import load_checkpoint
    from .streams import count_words, load_lines, unit_of

    scorer = load_checkpoint(
        args.path, args.data, args.position_encoding, args.trust_checkpoint, args.model_overrides, args.ema
    )
    lines = load_lines(args.data, args.subset, scorer.task.dictionary)
    stream = torch.cat(lines)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    scorer.model.to(device, torch.float16 if args.fp16 else torch.float32)

    unit = unit_of(args.data)

    def report(cell: Dict[str, Any]) -> None:
        if unit != "word":  # perplexities over different vocabularies are compared per word
            words = count_words(stream[: cell["tokens"]], scorer.task.dictionary, unit)
            per_word = cell["tokens"] / words
            cell.update(words=words, word_perplexity=perplexity_of(cell["nll"] * per_word))
        if unit == "character":
            cell["bits_per_character"] = cell["nll"] / math.log(2)
            for end in ("low", "high"):
                bound = cell[f"perplexity_{end}"]
                cell[f"word_perplexity_{end}"] = None if bound is None else perplexity_of(math.log(bound) * per_word)
        print(shown(cell), flush=True)

    with errors_in_flags():
        if args.per_line:
            write_lines(args.per_line, evaluate_lines(scorer, lines, args.max_tokens))
            print(f"{args.per_line}: {len(lines):,} lines", flush=True)
        of = (args.lengths, args.inference, args.max_tokens, args.stride, args.sliding_tokens, args.sequences)
        cells = evaluate(scorer, stream, *of, report)
    return {
        "checkpoint": args.path,
        "data": args.data,
        "subset": args.subset,
        "options": scorer.options,
        "stride": args.stride,
        "model_overrides": args.model_overrides,
        "ema": args.ema,
        **made_by(scorer.model, torch, fairseq),
        "cells": cells,
    }
