#!/usr/bin/env bash
# Draws figures as SVG and PNG: of formulas or, with --preset or --path, of trained models.
#
#   scripts/figures.sh [--output DIR] [NAME ...]                  scripts/figures.sh figure4 basis-ricker
#   scripts/figures.sh --preset PRESET [NAME ...]                 scripts/figures.sh --preset wikitext2-cpu positions
#   scripts/figures.sh --path CHECKPOINT --data DIR [NAME ...]    any checkpoint that the evaluation takes
#
#   --output DIR    folder of the formulas' figures (default: results/figures)
#
# Without a NAME, all figures of formulas are drawn: figure4, figure5, figure6, figure9, figure10, basis-ricker,
# basis-gaussian, basis-morlet, basis-haar, basis-db4, singular-values. Each call gives the same bytes.
#
#   --preset PRESET    preset whose tables and finished runs are drawn; paper: the paper's own tables
#   --runs DIR         folder of the runs (default: runs)
#   --results DIR      folder of the tables (default: results); the figures go to RESULTS/PRESET/figures
#   --data DIR         data-bin folder (default: data/CORPUS)
#   --path CHECKPOINT  one model: a row named after the checkpoint's folder, with the results folder RESULTS/ROW
#   --position-encoding, --trust-checkpoint    as for python -m wavepos_fairseq.evaluation
#   --text TEXT        attention-ROW shows this text instead of the start of the validation set
#   --threshold W      attention-ROW is black at weights of W or more (default: 1 / number of tokens)
#
# Without a NAME, all figures of the preset are drawn: perplexity and perplexity-table3 from the tables; positions and
# receptive-field from Table 1's finished runs (their numbers go to RESULTS/PRESET/positions.csv and attention.csv); and
# attention-ROW for alibi, ricker, rope-10k and nope.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq figures "$@"
