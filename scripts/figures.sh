#!/usr/bin/env bash
# Draws figures, each as SVG and PNG: those of formulas, or with --preset or --path those of what was trained.
#
#   scripts/figures.sh [--output DIR] [NAME ...]                  scripts/figures.sh figure4 basis-ricker
#   scripts/figures.sh --preset PRESET [NAME ...]                 scripts/figures.sh --preset wikitext2-cpu positions
#   scripts/figures.sh --path CHECKPOINT --data DIR [NAME ...]    any checkpoint that the evaluation takes
#
#   --output DIR    where those of formulas go (default: results/figures)
#
# Without a NAME all are drawn: figure4, figure5, figure6, figure9, figure10, basis-ricker, basis-gaussian,
# basis-morlet, basis-haar, basis-db4, singular-values. The same bytes come out every time.
#
#   --preset PRESET    whose tables and finished runs; paper stands for the paper's own tables
#   --runs DIR         where the runs are (default: runs)
#   --results DIR      where the tables are (default: results); the figures go to RESULTS/PRESET/figures
#   --data DIR         data-bin folder (default: data/CORPUS)
#   --path CHECKPOINT  of one model, which is a row named after the checkpoint's folder, and its results RESULTS/ROW
#   --position-encoding, --trust-checkpoint    as python -m wavepos_fairseq.evaluation takes them
#   --text TEXT        attention-ROW shows this text, in the place of the validation set's beginning
#   --threshold W      attention-ROW is black at weights of W or more (default: 1 / number of tokens)
#
# Without a NAME all are drawn: perplexity and perplexity-table3 from the tables; from Table 1's finished runs positions
# and receptive-field, whose numbers go to RESULTS/PRESET/positions.csv and attention.csv; and attention-ROW for alibi,
# ricker, rope-10k and nope.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq figures "$@"
