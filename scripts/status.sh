#!/usr/bin/env bash
# Shows each run of a table or a sweep: done, running, failed, stopped or not started; time left; perplexities so far.
#
#   scripts/status.sh TABLE --preset PRESET [--seeds N] [--runs DIR]     scripts/status.sh table1 --preset wikitext2-cpu
#   scripts/status.sh --preset PRESET --wavelet X ... [--scales X ...]   the grid given to scripts/sweep.sh
#
# It only reads the runs' files. reproduce.sh reports rows that do not fit the preset's heads.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq status "$@"
