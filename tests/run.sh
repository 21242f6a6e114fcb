#!/usr/bin/env bash
# Run the tests, installing what they need on first use: bash tests/run.sh [pytest options]
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=src/scripts/environment.sh
. "$repo/src/scripts/environment.sh"
use_environment test
cd "$repo"
# One process a core, and one thread in each: the models of the tests are too small to share.
export OMP_NUM_THREADS=1
exec "$python" -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal "$@"
