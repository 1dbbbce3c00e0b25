"""Prepare a corpus: DEST/NAME becomes its fairseq data-bin folder, or three texts for the other front-end."""

import sys
from pathlib import Path
from typing import Optional, Sequence

from ..common import commands
from ..common.files import ROOT
from ..plugin.streams import BLANK
from .characters import ENDING
from .corpus import DataError
from .data_bin import CHARACTERS, TEXTS, WORDS, prepare


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; status 2 and one ``error: …`` where `prepare` raises."""
    parser = commands.parser(__doc__, prog="wavepos prepare")
    parser.add_argument("name", metavar="NAME", choices=[*WORDS, *TEXTS], help=", ".join([*WORDS, *TEXTS]))
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER_OR_URL",
        help="wikitext-*: a folder with wiki.{train,valid,test}.tokens, a zip archive or its URL (default: download); "
        "text: a folder with train.txt, valid.txt, test.txt (UTF-8, one paragraph a line); documents: the same, or "
        ".jsonl, whose lines have text or content; redpajama: a folder with both of its data sets (default: the hub)",
    )
    parser.add_argument("--dest", type=Path, default=ROOT / "data", help="where NAME goes (default: data)")
    parser.add_argument("--bpe", type=int, metavar="N", help="text only: learn N byte-pair merges on train")
    parser.add_argument(
        "--characters",
        action="store_true",
        help=f"wikitext-*, text: one token a character, a blank as {BLANK}, rare ones <unk>; it goes to NAME{ENDING}",
    )
    args = parser.parse_args(arguments)
    name = args.name + ENDING if args.characters else args.name
    if args.characters and name not in CHARACTERS:
        accepted = ", ".join(corpus.words.name for corpus in CHARACTERS.values())
        parser.error(f"argument --characters: accepted are {accepted}, not {args.name}")
    if args.characters and args.bpe is not None:
        parser.error(f"argument --characters: not with --bpe {args.bpe}, which makes subwords of words")
    if name not in TEXTS:
        commands.require_fairseq()
    with commands.progress_fails_nothing():
        try:
            prepare(name, args.source, args.dest, args.bpe)
        except (DataError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0
