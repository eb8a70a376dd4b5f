#!/usr/bin/env bash
# On the machine with the accelerator: makes the environment, then runs the program. Arguments: the extras of setup.py (tpu or cuda; with gs), the program's;
# without these it stops at the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
extras=$1
shift
if [ ! -x .venv/bin/python ] && ! find_python >/dev/null 2>&1; then # Ubuntu 22.04, on which the TPU images are built, has Python 3.10
  curl -LsSf https://astral.sh/uv/install.sh | sh
  ~/.local/bin/uv venv --seed --python 3.12 .venv
fi
environment .venv ".[$extras]"
if (($#)); then
  exec .venv/bin/python -m proxy_jax.main "$@"
fi
