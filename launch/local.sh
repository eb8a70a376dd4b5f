#!/usr/bin/env bash
# From a fresh checkout to a report: environment, installation, the main job. Further arguments go to the command line, e.g.
#   CONFIG=configs/smoke.py bash launch/local.sh --config.subject.photos=photos/my_dog --config.subject.class_noun=dog
# PYTHON: the interpreter to build the environment from (default: the newest python3.11 to 3.13 found). CONFIG, WORKDIR: what to run, where to.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment .venv "."
.venv/bin/python -m proxy_jax.main --config "${CONFIG:-configs/micro.py}" --workdir "${WORKDIR:-runs/local}" "$@"
