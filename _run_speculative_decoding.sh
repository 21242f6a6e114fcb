#!/usr/bin/env bash
#SBATCH --job-name=asarm-decode
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#
# Decode real text speculatively and sequentially, and compare cost and text:
#
#     bash _run_speculative_decoding.sh [tiny|paper] [options]
#
# tiny: bundled model and sample text, CPU, offline. paper (the default): released weights and WikiText from the Hub.
# `... tiny --help` lists the options. Results go to results/decode-PRESET in this repository; a run that was
# interrupted goes on. On Slurm give partition, account and GPU to sbatch: sbatch --gres=gpu:1 _run_... paper
# Faster than paper, and as exact: paper --samplers sequential fused.
set -euo pipefail

# Slurm runs a copy of this script from its spool folder: the repository is then that of the script that sbatch was
# given, or else where sbatch was called.
submitted() {
    [ -z "${SLURM_JOB_ID-}" ] || scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/_run_[a-z_]*\.sh.*|\1|p'
}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "$(submitted)" "${SLURM_SUBMIT_DIR-}"; do
    [ -f "$repo/src/scripts/environment.sh" ] && break
done
repo=$(cd "$repo" && pwd)
# shellcheck source=src/scripts/environment.sh
. "$repo/src/scripts/environment.sh"

preset=paper
case "${1-}" in
    "" | -*) ;;
    *) preset=$1 && shift ;;
esac
# shellcheck disable=SC2119 # no extras
use_environment
exec "$python" -m asarm decode "$preset" --output_dir "$repo/results/decode-$preset" "$@"
