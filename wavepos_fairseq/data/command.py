"""Prepare a corpus: DEST/NAME becomes its fairseq data-bin folder."""

import sys
from pathlib import Path
from typing import Optional, Sequence

from ..common import commands
from ..common.files import ROOT
from .corpus import DataError
from .data_bin import NAMES, prepare


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; status 2 and one ``error: …`` where `prepare` raises."""
    parser = commands.parser(__doc__, prog="wavepos prepare")
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER_OR_URL",
        help="wikitext-*: a folder with wiki.{train,valid,test}.tokens, a zip archive or its URL (default: download); "
        "text: a folder with train.txt, valid.txt, test.txt (UTF-8, one paragraph a line)",
    )
    parser.add_argument("--dest", type=Path, default=ROOT / "data", help="where NAME goes (default: data)")
    parser.add_argument("--bpe", type=int, metavar="N", help="text only: learn N byte-pair merges on train")
    args = parser.parse_args(arguments)
    commands.require_fairseq()
    with commands.progress_fails_nothing():
        try:
            prepare(args.name, args.source, args.dest, args.bpe)
        except (DataError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0
