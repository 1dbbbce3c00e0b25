#!/usr/bin/env bash
# Writes one HTML page with a preset's curves, tables, figures and claims, and how they were made.
#
#   scripts/report.sh --preset PRESET [options]       scripts/report.sh --preset wikitext2-cpu
#
#   --results DIR    the preset's results are in DIR/PRESET (default: results)
#   --output FILE    where the page goes (default: report.html in that folder)
#
# The page leaves out what does not exist yet, and names the command that makes it. It needs no network.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq report "$@"
