#!/usr/bin/env bash
# Trains and evaluates every combination of wavelets, scales, shifts and directions, then writes their table.
#
#   scripts/sweep.sh --preset PRESET --wavelet W ... [--scales S ...] [--shifts B ...] [--direction D ...]
#   scripts/sweep.sh --preset wikitext2-cpu --wavelet ricker db4 --shifts 0..3 0..7 --jobs 2
#
#   --wavelet W ...    ricker, gaussian, morlet, haar, or discrete wavelets of PyWavelets (db4, sym8, bior6.8 ...)
#   --scales S ...     sets of scales in the syntax of --wavelet-scales: 2^0..2^7, 2^0*8, 1,2,4; for discrete wavelets
#                      levels, 1..8 (default: as many of the paper's as fit)
#   --shifts B ...     sets of shifts in the syntax of --wavelet-shifts: 0..15 (default: as many as fit)
#   --direction D ...  past, future, scaled: how --wavelet-shift-direction reads the shifts (default: past)
#   --position P ...   wavelet, wavelet+alibi ...: values of --position-encoding (default: wavelet)
#   --name NAME        the table's name (default: sweep)
#
# --data, --jobs, --gpus, --processes, --runs, --results, --seed, --seeds and --launcher work as in scripts/reproduce.sh.
# Before the first training it lists all combinations that do not fit the preset's heads. One call takes at most 10,000
# runs.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq sweep "$@"
