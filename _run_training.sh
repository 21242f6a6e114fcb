#!/usr/bin/env bash
#SBATCH --job-name=asarm-train
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#
# Train an AS-ARM on local text files:
#
#     bash _run_training.sh --train_files FILE_OR_FOLDER ... --output_dir FOLDER [options]
#
# `--help` lists the options; `--resume` goes on after an interruption. The model lies in FOLDER/model. On Slurm give
# partition, account and GPU to sbatch: sbatch --gres=gpu:1 _run_training.sh ...
set -euo pipefail

# Slurm runs a copy of this script from its spool folder: the repository is then where sbatch was called, or where the
# script lay that sbatch was given.
submitted() {
    [ -z "${SLURM_JOB_ID-}" ] || scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/_run_[a-z_]*\.sh.*|\1|p'
}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "${SLURM_SUBMIT_DIR-}" "$(submitted)"; do
    [ -f "$repo/src/scripts/environment.sh" ] && break
done
repo=$(cd "$repo" && pwd)
# shellcheck source=src/scripts/environment.sh
. "$repo/src/scripts/environment.sh"

# shellcheck disable=SC2119 # no extras
use_environment
exec "$python" -m asarm train "$@"
