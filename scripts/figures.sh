#!/usr/bin/env bash
# Draws the paper's figures of formulas, the bases and their singular values, each as SVG and PNG.
#
#   scripts/figures.sh [--output DIR] [NAME ...]      scripts/figures.sh figure4 basis-ricker
#
#   --output DIR    where they go (default: results/figures)
#
# Without a NAME all are drawn: figure4, figure5, figure6, figure9, figure10, basis-ricker, basis-gaussian,
# basis-morlet, basis-haar, basis-db4, singular-values. The same bytes come out every time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
help_if_asked "$@"

exec "$PYTHON" -m wavepos_fairseq.figures "$@"
