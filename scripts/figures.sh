#!/usr/bin/env bash
# Draws figures as SVG and PNG: of the formulas, or with --preset or --path of trained models.
#
#   scripts/figures.sh [--output DIR] [NAME ...]                  scripts/figures.sh figure4 basis-ricker
#   scripts/figures.sh --preset PRESET [NAME ...]                 scripts/figures.sh --preset wikitext2-cpu positions
#   scripts/figures.sh --path CHECKPOINT --data DIR [NAME ...]    any checkpoint that the evaluation takes
#
#   --output DIR    where the formulas' figures go (default: results/figures)
#
# Without a NAME it draws all of them: figure4, figure5, figure6, figure9, figure10, basis-ricker, basis-gaussian,
# basis-morlet, basis-haar, basis-db4, singular-values. The files are the same bytes every time.
#
#   --preset PRESET    draws this preset's tables and finished runs; paper: the paper's own tables
#   --runs DIR         where the runs are (default: runs)
#   --results DIR      where the tables are (default: results); the figures go to RESULTS/PRESET/figures
#   --data DIR         data-bin folder (default: data/CORPUS)
#   --path CHECKPOINT  draws one model; its row has the name of the checkpoint's folder, its figures go to RESULTS/ROW
#   --position-encoding, --trust-checkpoint    as in python -m wavepos_fairseq.evaluation
#   --text TEXT        attention-ROW shows this text instead of the validation set's beginning
#   --threshold W      attention-ROW is black at weights of W or more (default: 1 / number of tokens)
#
# Without a NAME it draws, of what there is: perplexity (Table 1), perplexity-table2, -table3, -combinations and -beyond
# from the tables; pairs and context (their numbers: scripts/claims.sh) and longbench (scripts/longbench.sh --compare);
# positions and receptive-field from Table 1's finished runs (their numbers go to RESULTS/PRESET/positions.csv and
# attention.csv); attention-ROW for alibi, ricker, rope-10k and nope. receptive-field-combinations is drawn if it is asked
# for, or there already.
#
# growth is drawn if it is asked for, or there already: the perplexities beyond L_train over the tokens trained on, from
# all checkpoints that the preset's runs kept (wikitext2-chars-cpu-long keeps them). Its numbers go to growth.csv; a
# checkpoint that is in there is not evaluated again.
#
# recall is drawn likewise, from the finished runs of a preset whose corpus is recall: how often a key's value is found,
# over the distance. Its numbers go to recall.csv; a run that is in there is not evaluated again.
#
# wavelets is drawn likewise, from the finished runs with --wavelet-learn: their scales and shifts by layer, before and
# after training. Its numbers go to wavelets.csv.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq figures "$@"
