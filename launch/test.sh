#!/usr/bin/env bash
# From a fresh checkout to a tested one: environment with the test extras, linter, whole test suite. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment .venv-test ".[test]"
export JAX_PLATFORMS=cpu
.venv-test/bin/python -m ruff check .
.venv-test/bin/python -m pytest "$@"
