#!/usr/bin/env bash
# Evaluates the ALiBi release's WikiText-103 model for an L_train, at the lengths of Press et al.'s Table 5 and of the
# paper's Table 1, in both inferences. It prints the perplexities beside the paper's ALiBi row and Press et al.'s.
#
#   scripts/evaluate_alibi_release.sh 64|128|256|512|1024|1536|2048|3072 [options]
#   scripts/evaluate_alibi_release.sh 512 --fp16
#
#   --from FILE           the checkpoint (default: downloaded from the release into data/.downloads)
#   --data DIR            data-bin of WikiText-103 (default: data/wikitext-103, prepared if missing)
#   --output FILE.json    where the results go (default: runs/alibi-release/L_TRAIN.json)
#
# All other options go to python -m wavepos_fairseq.evaluation: --cpu, --fp16, --max-tokens, --trust-checkpoint ...
# An interrupted download continues. The release gives no checksum, so the SHA-256 of the file is printed.
. "$(dirname "$(readlink -f "$0")")/env.sh"

exec "$PYTHON" -m wavepos_fairseq.lab.alibi_release "$@"
