#!/usr/bin/env bash
# How far the runs of a table, or a sweep, are: done, running, stopped or not started, time left, perplexities so far.
#
#   scripts/status.sh TABLE --preset PRESET [--seeds N] [--runs DIR]     scripts/status.sh table1 --preset wikitext2-cpu
#   scripts/status.sh --preset PRESET --wavelet X ... [--scales X ...]   the grid as given to scripts/sweep.sh
#
# It reads the runs' files only: that a row does not fit the preset's heads, reproduce.sh says.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq status "$@"
