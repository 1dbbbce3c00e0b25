#!/usr/bin/env bash
# Prepares a corpus as a fairseq data-bin folder.
#
#   scripts/prepare_data.sh NAME [--from DIR_OR_URL] [--dest DIR] [--bpe N | --characters]
#
#   wikitext-103, wikitext-2  downloaded, or --from a folder with wiki.{train,valid,test}.tokens, a zip or its URL
#   demo                      the documentation of Python's standard library; needs no network
#   recall                    made-up pairs of keys and values (docs/reproduce.md); needs no network
#   text --from DIR           your own train.txt, valid.txt and test.txt, tokenised like WikiText; --bpe N: subwords
#   python-source             the source of Python's standard library, as text for the presets of Llamas; needs no network
#   redpajama                 RedPajama's sample for train, CodeParrot's for valid and test, from the hub, or --from a folder
#                             that has both, as text for the presets of Llamas; needs the extra hf
#   documents --from DIR      your own train, valid and test, as .txt or .jsonl, as text for the presets of Llamas
#
# --characters makes one token a character (wikitext-* and text). Blanks become ▁. Characters with a count below 20 in train
# become <unk>.
#
# The data-bin is DIR/NAME (default: data/NAME in the project), of characters DIR/NAME-characters. It is written
# completely or not at all.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq prepare "$@"
