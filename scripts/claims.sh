#!/usr/bin/env bash
# Judges the paper's statements (configs/claims.yaml) on the tables of a preset: RESULTS/PRESET/claims.md and
# claims.json. Also compares each two rows (pairs.csv), and windows longer than L_train with those of L_train (context.csv).
#
#   scripts/claims.sh --preset PRESET [--results DIR]      scripts/claims.sh --preset wikitext2-chars-cpu
#
#   --preset P       wikitext103-512, wikitext2-cpu ..., or paper for the paper's own tables
#   --results DIR    folder of the tables (default: results)
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq claims "$@"
