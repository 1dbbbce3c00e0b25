#!/usr/bin/env bash
# Scores a Hugging Face model on the nine English tasks of LongBench, or compares the scores of two models.
#
#   scripts/longbench.sh --data DATA                                         Table 5's statistics of the data
#   scripts/longbench.sh --data DATA --model FOLDER --results SCORES         SCORES/TASK.json and SCORES/scores.csv
#   scripts/longbench.sh --compare SCORES SCORES --results RESULTS/PRESET    longbench.csv there, the first minus the second
#
#   --data DATA       LongBench's data.zip or a folder of its files, TASK.jsonl (default: from the hub)
#   --tasks T,T       some of narrativeqa, qasper, multifieldqa_en, hotpotqa, 2wikimqa, musique, triviaqa, samsum, qmsum,
#                     and RULER's niah_single_1 (default: the nine)
#   --limit N         the first N samples of each task (default: all)
#   --max-length N    tokens of a prompt, which loses its middle (default: the model's max_position_embeddings - 512)
#
# scripts/figures.sh --preset PRESET longbench then draws the paper's Figure 11, scripts/claims.sh judges its signs.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq longbench "$@"
