#!/usr/bin/env bash
# Reproduces a table of the paper: trains and evaluates every unfinished row, then writes the table.
#
#   scripts/reproduce.sh TABLE --preset PRESET [options]          scripts/reproduce.sh table1 --preset demo
#
#   --data DIR      data-bin folder, or the corpus's text (default: data/CORPUS, downloaded if missing)
#   --jobs N        rows to train side by side, each with its own share of the threads and GPUs (default: 1)
#   --gpus N        GPUs per row (0: CPU); --update-freq keeps the preset's tokens per update
#   --runs DIR      checkpoints, logs and results of the rows (default: runs)
#   --results DIR   the tables go to DIR/PRESET (default: results)
#   --seed N        seed (default: 1); other seeds go to folders PRESET-seedN
#   --seeds N       trains seeds 1 to N; the table shows mean and standard deviation
#   --processes N   processes per row on the CPU; --update-freq as above (default: 1)
#   --launcher L    local (default), or slurm: a job array in which each row has the preset's resources
#
# Tables are the files of configs/tables, presets those of configs/presets; docs/reproduce.md describes them.
#
# The same command continues an interrupted one. A row that two tables share is trained once. If a row fails, does not fit
# the preset's heads or has a damaged file, the others go on and the exit status is not 0. See also scripts/status.sh.
# OMP_NUM_THREADS sets the threads of a row; a resumed row keeps the number that it began with.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq reproduce "$@"
