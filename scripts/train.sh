#!/usr/bin/env bash
# Trains one row of a table, or any options, under a preset; resumes from the last checkpoint if there is one.
#
#   scripts/train.sh PRESET ROW [OPTION ...]      scripts/train.sh wikitext103-512 ricker --gpus 4
#   scripts/train.sh PRESET --OPTION ...          scripts/train.sh demo --position-encoding rope --rope-theta 1e6
#
#   --data DIR    data-bin folder, or the corpus's text (default: data/CORPUS, downloaded if needed)
#   --gpus N      GPUs to train on (0: CPU); --update-freq keeps the preset's tokens per update
#   --runs DIR    folder of the run's folder PRESET/ROW (default: runs)
#   --seed N      seed (default: 1)
#   --name NAME   the run's name (default: ROW, or made from the options)
#   --dry-run     print the fairseq-train command and stop
#
# All other options are fairseq-train's. They follow the preset's and the row's options, but cannot change --save-dir,
# --task and --tokens-per-sample, which define the run. The number of threads is OMP_NUM_THREADS, or the CPUs that the
# process may use; a resumed training keeps the number it began with.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq train "$@"
