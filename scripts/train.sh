#!/usr/bin/env bash
# Trains one row of a table, or any options, under a preset; goes on from the last checkpoint where there is one.
#
#   scripts/train.sh PRESET ROW [OPTION ...]      scripts/train.sh wikitext103-512 ricker --gpus 4
#   scripts/train.sh PRESET --OPTION ...          scripts/train.sh demo --position-encoding rope --rope-theta 1e6
#
#   --data DIR    data-bin folder, or the corpus's text (default: data/CORPUS, downloaded if need be)
#   --gpus N      GPUs to train on; --update-freq keeps the preset's tokens per update (0: CPU)
#   --runs DIR    where the run's folder PRESET/ROW is made (default: runs)
#   --seed N      seed (default: 1)
#   --name NAME   the run's name (default: ROW, or made from the options)
#   --dry-run     print the fairseq-train command and stop
#
# Every other option is fairseq-train's and follows the preset's and the row's own, but those that make the run what it is:
# --save-dir, --task and --tokens-per-sample. Threads: OMP_NUM_THREADS, or the CPUs that it may use; a training that goes
# on keeps those it began with.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq train "$@"
