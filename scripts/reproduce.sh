#!/usr/bin/env bash
# Reproduces a table of the paper: trains and evaluates every row that is not done yet, then writes the table.
#
#   scripts/reproduce.sh table1|table3|table4|shift-direction --preset PRESET [options]
#
#   --data DIR      data-bin folder, or the corpus's text (default: data/CORPUS, downloaded if need be)
#   --jobs N        rows side by side, threads and GPUs divided (default: 1)
#   --gpus N        GPUs a row trains on; --update-freq keeps the preset's tokens per update (0: CPU)
#   --runs DIR      checkpoints, logs and results of the rows (default: runs)
#   --results DIR   where the tables go, in a folder PRESET (default: results)
#   --seed N        seed (default: 1); any other goes into folders PRESET-seedN
#   --seeds N       the seeds 1 to N; the table has mean and standard deviation
#   --processes N   processes a row trains with on the CPU, --update-freq as above (default: 1)
#   --launcher L    local (default), or slurm: a job array, with the preset's resources a row
#
# Presets: wikitext103-512 and wikitext103-1024 (the paper's), wikitext2-cpu and wikitext2-cpu-256 (an hour on two cores),
# demo (minutes). Interrupted, it goes on where it stopped; a row that two tables share is trained once. If a row fails,
# or does not fit the heads of the preset, or one of its files is not sound, the others go on and the status is not 0. See
# also scripts/status.sh. A row has OMP_NUM_THREADS threads where that is set, and keeps the number it began with.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq reproduce "$@"
