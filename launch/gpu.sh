#!/usr/bin/env bash
# On this machine's GPUs, one process for all of them:
#   bash launch/gpu.sh -- --config configs/sdxl_llamagen.py --workdir runs/my_dog ...
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
parse "" "$@"
run bash launch/worker.sh "$(extras cuda)" "${program[@]}"
