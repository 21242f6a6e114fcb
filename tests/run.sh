#!/usr/bin/env bash
# Run the tests, installing what they need on first use: bash tests/run.sh [pytest options]
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=src/scripts/environment.sh
. "$repo/src/scripts/environment.sh"
use_environment test
cd "$repo"
exec "$python" -m pytest "$@"
