#!/usr/bin/env bash
# Evaluates what scripts/train.sh trained, at the preset's lengths and in its inferences. The arguments are train.sh's.
#
#   scripts/evaluate.sh PRESET ROW                scripts/evaluate.sh wikitext103-512 ricker
#   scripts/evaluate.sh PRESET --OPTION ...       scripts/evaluate.sh demo --position-encoding rope --rope-theta 1e6
#
# The result is RUNS/PRESET/ROW/evaluation.json. For any other checkpoint, length or split, use
#
#   python -m wavepos_fairseq.evaluation DATA_BIN --path CHECKPOINT --lengths 128,256,512,1012 --output FILE.json
#   scripts/evaluate.sh --model FOLDER --text FILE --lengths 128,256,512 --output FILE.json    a model of transformers
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq evaluate "$@"
