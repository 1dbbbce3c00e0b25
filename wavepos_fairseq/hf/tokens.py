"""Text as tokens for a language model of transformers: a tokenizer, learned or given, and what it makes of a text."""

import re
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Union

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from ..common.errors import first_line

EOS = "</s>"
TOKENS = "train.npy"
LEAST_TYPES = 257  # the bytes and eos
CHARACTERS = 2**20  # of a text at a time


def parts_of(file: Path) -> Iterator[str]:
    """The text of a UTF-8 file in parts of about `CHARACTERS`, whose tokens are together those of the whole text.

    A part ends with a line where no other white space is beside the line's end: a byte-level BPE joins nothing there.
    """
    part: List[str] = []
    length = 0
    with file.open(encoding="utf-8", newline="") as lines:
        for line in lines:
            if length >= CHARACTERS and not line[0].isspace() and re.search(r"\S\n\Z", part[-1]):
                yield "".join(part)
                part, length = [], 0
            part.append(line)
            length += len(line)
    if part:
        yield "".join(part)


def learn_tokenizer(texts: Iterable[str], types: int) -> Any:
    """A byte-level BPE of so many types, learned on the texts. ValueError if it cannot have as many.

    Every byte is a type, so no text is unknown. The only special token is eos, which also stands before a text.
    """
    if types < LEAST_TYPES:
        raise ValueError(f"tokenizer {types}: accepted are {LEAST_TYPES} types or more, which are the bytes and {EOS}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings: Any = {"initial_alphabet": alphabet, "special_tokens": [EOS], "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=types, **settings))
    if tokenizer.get_vocab_size() < types:
        raise ValueError(f"tokenizer {types}: the text gives no more than {tokenizer.get_vocab_size()} types")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS)


def write_tokens(file: Path, tokenizer: Union[int, str], folder: Path) -> int:
    """Writes a tokenizer and TOKENS, what it makes of the file, into the folder; returns the number of tokens.

    tokenizer: the types of a BPE that is learned on the file, or the folder of another one, or its name on the hub.
    TOKENS is (tokens,), in the smallest unsigned integers that hold all types; no token in it is special.
    """
    transformers_logging.set_verbosity_error()  # parts are longer than any model reads
    if isinstance(tokenizer, int):
        made = learn_tokenizer(parts_of(file), tokenizer)
    else:
        try:
            made = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        except Exception as error:  # of many types, by what is in the way
            raise ValueError(
                f"tokenizer {tokenizer} cannot be read ({first_line(error)}); accepted are a folder that a tokenizer's "
                "save_pretrained wrote and a number of types"
            ) from error
    kind = np.uint16 if len(made) <= 2**16 else np.uint32
    parts = [np.array(made(part, add_special_tokens=False)["input_ids"], dtype=kind) for part in parts_of(file)]
    made.save_pretrained(folder)
    np.save(folder / TOKENS, np.concatenate(parts))
    return sum(map(len, parts))
