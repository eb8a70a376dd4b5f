#!/usr/bin/env bash
# From a fresh checkout to a tested one: environment with the test extras, linter, whole test suite. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment .venv-test ".[test]"
export JAX_PLATFORMS=cpu
.venv-test/bin/python -m ruff check .
# Two workers: most of the time goes into compilations, which use one core each. In the order of tests/conftest.py: the slow files first.
.venv-test/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
