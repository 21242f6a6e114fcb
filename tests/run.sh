#!/usr/bin/env bash
# Run the tests, installing what they need on first use: bash tests/run.sh [--all] [pytest options]
#
# Tests marked slow are left out, unless the first argument is --all or the options have an -m of their own.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=src/scripts/environment.sh
. "$repo/src/scripts/environment.sh"
selection=(-m "not slow") # of several -m, pytest takes the last
if [ "${1-}" = --all ]; then
    selection=()
    shift
fi
use_environment test
cd "$repo"
# One process a core, and one thread in each: the models of the tests are too small to share.
export OMP_NUM_THREADS=1
# ${selection[@]+...}: bash before 4.4 takes an empty array for an unset variable.
exec "$python" -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal ${selection[@]+"${selection[@]}"} "$@"
