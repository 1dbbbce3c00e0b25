#!/usr/bin/env bash
# Reproduces a table of the paper: trains and evaluates every unfinished row, then writes the table.
#
#   scripts/reproduce.sh table1|table3|table4|shift-direction --preset PRESET [options]
#
#   --data DIR      data-bin folder, or the corpus's text (default: data/CORPUS, downloaded if needed)
#   --jobs N        parallel rows, which share the threads and GPUs (default: 1)
#   --gpus N        GPUs per row (0: CPU); --update-freq keeps the preset's tokens per update
#   --runs DIR      checkpoints, logs and results of the rows (default: runs)
#   --results DIR   folder of the tables, which go to its folder PRESET (default: results)
#   --seed N        seed (default: 1); other seeds use folders PRESET-seedN
#   --seeds N       run seeds 1 to N; the table shows mean and standard deviation
#   --processes N   processes per row on the CPU, with --update-freq as above (default: 1)
#   --launcher L    local (default), or slurm: a job array, each row with the preset's resources
#
# Presets: wikitext103-512 and wikitext103-1024 (the paper's), wikitext2-cpu and wikitext2-cpu-256 (an hour on two cores),
# demo (minutes). Run the command again after an interruption to resume. Two tables that share a row train it once. If a
# row fails, does not fit the preset's heads or has an invalid file, the others continue and the status is not 0. A row
# has OMP_NUM_THREADS threads if that is set, and keeps the number it began with. See also scripts/status.sh.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq reproduce "$@"
