#!/usr/bin/env bash
# One HTML page of what a preset's results hold: curves, tables, figures, claims, and how they were made.
#
#   scripts/report.sh --preset PRESET [options]       scripts/report.sh --preset wikitext2-cpu
#
#   --results DIR    where the results are, a folder a preset (default: results)
#   --output FILE    where the page goes (default: report.html in the preset's results)
#
# What is not there is left out, and the page says which command makes it. The page needs no network.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq report "$@"
