#!/usr/bin/env bash
#SBATCH --job-name=proxy_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# GPUs under Slurm, one process a node; after a preemption Slurm queues it again, and it resumes. Flags of sbatch go before the script's name:
#   sbatch --time=24:00:00 launch/slurm.sh -- --config configs/sdxl_llamagen.py --workdir runs/my_dog ...
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" # Slurm runs a copy of this file from elsewhere
source launch/common.sh
parse "" "$@"
run bash launch/worker.sh "$(extras cuda)" # once, before the nodes share it
run srun --ntasks-per-node=1 --kill-on-bad-exit=1 .venv/bin/python -m proxy_jax.main "${program[@]}"
