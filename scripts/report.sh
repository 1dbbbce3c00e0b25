#!/usr/bin/env bash
# Writes a preset's results as one HTML page: curves, tables, figures, claims, and how they were made.
#
#   scripts/report.sh --preset PRESET [options]       scripts/report.sh --preset wikitext2-cpu
#
#   --results DIR    folder of the results, with a folder for each preset (default: results)
#   --output FILE    the page (default: report.html in the preset's results)
#
# The page leaves out missing parts and says which command makes them. It needs no network.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq report "$@"
