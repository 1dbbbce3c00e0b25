#!/usr/bin/env bash
# Trains one row of a table, or any options, with a preset. It continues from the last checkpoint if one exists.
#
#   scripts/train.sh PRESET ROW [OPTION ...]      scripts/train.sh wikitext103-512 ricker --gpus 4
#   scripts/train.sh PRESET --OPTION ...          scripts/train.sh demo --position-encoding rope --rope-theta 1e6
#
#   --data DIR    data-bin folder, or the corpus's text (default: data/CORPUS, downloaded if missing)
#   --gpus N      GPUs to train on (0: CPU); --update-freq keeps the preset's tokens per update
#   --processes N processes to train with on the CPU; --update-freq as above (default: 1)
#   --runs DIR    the run's folder is DIR/PRESET/ROW (default: runs)
#   --seed N      seed (default: 1)
#   --name NAME   the run's name (default: ROW, or made from the options)
#   --dry-run     print the fairseq-train command and stop
#
# All other options go to fairseq-train, after the preset's and the row's. --save-dir, --task and --tokens-per-sample
# are refused, because they define the run. It uses OMP_NUM_THREADS threads, by default one per CPU; a resumed training
# keeps the number that it began with.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq train "$@"
