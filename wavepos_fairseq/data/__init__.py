"""Corpora as fairseq data-bin folders: fetch, verify, tokenise, binarise.

    scripts/prepare_data.sh wikitext-103                    WikiText-103 (Merity et al., 2017), the paper's corpus
    scripts/prepare_data.sh wikitext-2 --from FOLDER        the same validation and test articles, a fiftieth of train
    scripts/prepare_data.sh text --from FOLDER --bpe 8000   your own English text
    scripts/prepare_data.sh demo                            the documentation of Python's standard library; no network
    scripts/prepare_data.sh recall                          made-up pairs of keys and values; no network
    scripts/prepare_data.sh python-source                   the source of Python's standard library; no network
    scripts/prepare_data.sh redpajama                       RedPajama's sample and CodeParrot's, from the hub
    scripts/prepare_data.sh documents --from FOLDER         your own text or JSON lines, as they are

DEST/NAME is the data-bin or, of the last three, three texts for front-ends with tokenizers of their own. It appears
there whole or not at all, with a provenance.json that says what it was made from.
fairseq-preprocess makes the dictionary and the binaries; this package gives it text and checks the result.
It does not clean text, split it into sentences or tokenise languages other than English.

`corpus` is what all sources of text have in common; each has a file: `wikitext`, `demo`, `recall`, `own_text`;
of `texts`, `python_source`, `redpajama` and `documents`.
`download` fetches files, `tokens` makes tokens of text, `data_bin` makes the data-bin, `command` is the command line.
"""

from .corpus import DataError
from .data_bin import NAMES, prepare
from .texts import prepare_tokens, tokens_folder
from .wikitext import WIKITEXT, check_counts

__all__ = ["NAMES", "WIKITEXT", "DataError", "check_counts", "prepare", "prepare_tokens", "tokens_folder"]
