#!/usr/bin/env bash
# How far the runs of a table are: done, running, stopped or not started, updates, time left, perplexities so far.
#
#   scripts/status.sh TABLE --preset PRESET [--seeds N] [--runs DIR]     scripts/status.sh table1 --preset wikitext2-cpu
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
help_if_asked "$@"

exec "$PYTHON" -m wavepos_fairseq.experiments status "$@"
