"""The perplexities of a model folder of transformers on a text (see `lab.evaluate` for the command)."""

import argparse
import json
import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import tokenizers
import torch
import transformers
from torch import Tensor

from ..evaluation.perplexity import evaluate, refuse_stride
from ..evaluation.record import made_by, shown
from ..evaluation.statistics import perplexity_of
from .folder import load_folder, refuse_length, scorer_of

CHARACTERS_OF_A_TOKEN = 8  # rather too many, so that a text need not be tokenised twice
CUT = 100  # tokens before the cut of a text, which may be others than in the whole


class Text(NamedTuple):
    """A text and its tokens, int64 (tokens,)."""

    text: str
    tokens: Tensor
    ends: Optional[List[int]]
    """Where each token ends in the text, in characters; None if nobody asks."""

    def covered_by(self, tokens: int) -> str:
        """The text that the first so many tokens stand for."""
        return self.text if self.ends is None or tokens >= len(self.tokens) else self.text[: max(self.ends[:tokens])]


def tokens_needed(args: argparse.Namespace) -> Optional[int]:
    """How many tokens of the text, from its beginning, the evaluation reads at most; None: all."""
    longest, most = max(args.lengths), 0
    for inference in args.inference:
        scored = args.sliding_tokens if inference == "sliding" else args.sequences and args.sequences * longest
        if scored is None:
            return None
        most = max(most, scored, longest)
    return most


def read_text(file: Path, tokenizer: Any, with_ends: bool = False, num_tokens: Optional[int] = None) -> Text:
    """The file as one stream of tokens, none of which is special. ValueError where it is no UTF-8 text with a word.

    num_tokens: these suffice, so not much more of a long text is tokenised.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text {file}: not UTF-8 at byte {error.start} ({error.reason})") from None
    if not text.split():
        raise ValueError(f"--text {file} is empty")
    if with_ends and not tokenizer.is_fast:
        raise ValueError(
            f"--sliding-tokens, --sequences: a {type(tokenizer).__name__} does not tell which text its tokens cover"
        )
    size = len(text) if num_tokens is None else CHARACTERS_OF_A_TOKEN * num_tokens
    while True:
        part = text[:size]
        read = tokenizer(part, add_special_tokens=False, return_offsets_mapping=with_ends)
        if size >= len(text) or len(read["input_ids"]) >= (num_tokens or 0) + CUT:
            break
        size *= 2
    ends = [end for _, end in read["offset_mapping"]] if with_ends else None
    return Text(part, torch.tensor(read["input_ids"]), ends)


def evaluate_folder(args: argparse.Namespace) -> Dict[str, Any]:
    """What --output holds, of the arguments that `lab.evaluate` accepts. Raises ValueError and OSError.

    A cell has the perplexities over tokens, words and bytes. Words are what white space divides (Python's ``split``),
    bytes are those of UTF-8, both of the text that is scored. A perplexity over words that no float holds is None.
    """
    sliding = "sliding" in args.inference
    if sliding:
        refuse_stride(args.stride, args.lengths)
    model, tokenizer = load_folder(args.model, overrides=args.model_overrides)
    trained = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    l_train = args.l_train or trained
    if l_train is None:
        raise ValueError(
            f"--l-train must be given: the config of a {model.config.model_type} has no max_position_embeddings"
        )
    starts = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    if not starts:
        raise ValueError(f"--model {args.model}: its tokenizer has neither bos nor eos, which stands before the text")
    some = args.sequences or (sliding and args.sliding_tokens)
    read = read_text(args.text, tokenizer, bool(some), tokens_needed(args))
    longest = max(args.lengths)
    if longest > len(read.tokens):
        raise ValueError(f"--lengths {longest}: --text {args.text} has {len(read.tokens)} tokens")
    whole = sliding or "full" in args.inference
    refuse_length(model, longest if whole else min(longest, l_train))
    options = json.loads(model.config.to_json_string())
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    model.to(device, torch.float16 if args.fp16 else torch.float32)

    def report(cell: Dict[str, Any]) -> None:
        covered, nats = read.covered_by(cell["tokens"]), cell["nll"] * cell["tokens"]
        for unit, count in (("word", len(covered.split())), ("byte", len(covered.encode("utf-8")))):
            mean = nats / count if count else math.inf
            cell[f"{unit}s"] = count
            cell[f"{unit}_perplexity"] = perplexity_of(mean) if mean < 700 else None
        cell["bits_per_byte"] = nats / cell["bytes"] / math.log(2)
        print(shown(cell), flush=True)

    of = (args.lengths, args.inference, args.max_tokens, args.stride, args.sliding_tokens, args.sequences)
    cells = evaluate(scorer_of(model, l_train, starts[0]), read.tokens, *of, report)
    return {
        "model": str(args.model),
        "text": str(args.text),
        "options": options,
        "stride": args.stride,
        "model_overrides": args.model_overrides,
        **made_by(model, torch, transformers, tokenizers),
        "cells": cells,
    }
