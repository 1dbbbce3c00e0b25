#!/usr/bin/env bash
# Shows each run of a table or a sweep: done, running, stopped or not started, the time left, its perplexities.
#
#   scripts/status.sh TABLE --preset PRESET [--seeds N] [--runs DIR]     scripts/status.sh table1 --preset wikitext2-cpu
#   scripts/status.sh --preset PRESET --wavelet X ... [--scales X ...]   the grid that scripts/sweep.sh was given
#
# It reads only the runs' files. reproduce.sh says which rows do not fit the preset's heads.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq status "$@"
