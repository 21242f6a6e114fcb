#!/usr/bin/env bash
# Train the adapters that docs/claims.md compares: the same base, texts, batches and steps, and one difference each.
#
#   bash benchmarks/claims/train_adapters.sh PASSAGES.jsonl OUTPUT [STEPS [ADAPTER ...]]
#   bash benchmarks/claims/train_adapters.sh FUNCTIONS.jsonl OUTPUT STEPS code-any-subset code-fim
#
# About 20 minutes an adapter of 100 steps on one core of a CPU that multiplies bfloat16. Run again, it goes on.
set -euo pipefail
texts=$1 output=$2 steps=${3:-100}
shift "$(($# < 3 ? $# : 3))"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
base=(--init_from smollm2 --lora_rank 16 --train_files "$texts" --block_size 128 --unpacked
    --per_device_train_batch_size 2 --gradient_accumulation_steps 4 --learning_rate 8e-4 --warmup_steps 10
    --max_steps "$steps" --bf16 --held_out 0.05 --eval_blocks 64 --eval_decodings 0 --eval_steps "$steps"
    --save_steps 25 --save_total_limit 1)
any=(--mask_low 0.05 --mask_high 0.99)
gaps=("${any[@]}" --mask_gaps 0.5 --gap_kinds sentences words characters --gap_tokens 40)
lines=("${any[@]}" --mask_gaps 0.5 --gap_kinds lines --gap_tokens 40)
high=(--mask_low 0.85 --mask_high 0.99)
declare -A differs=(
    [any-subset]="${gaps[*]}"                      # the paper's objective and order, gaps as people leave them
    [any-order]="${gaps[*]} --order random"        # targets in all N! orders
    [masked-diffusion]="${gaps[*]} --objective parallel" # a target sees the prompt only
    [any-rate]="${any[*]}"                         # masking rates from 0.05 to 0.99
    [paper-rate]="${high[*]}"                      # the paper's last rates from the first step on
    [fim]=""                                       # the base, filling in the middle; its kinds of gaps are the same
    [code-fim]="--gap_kinds lines"
    [code-any-subset]="${lines[*]}"                # any-subset, with the gaps of code
    [warm-up]="${high[*]} --mask_start 0.15 --mask_warmup_steps $((steps / 2))" # and the same after a warm-up
)
[ $# -gt 0 ] || set -- any-subset masked-diffusion fim any-order any-rate paper-rate warm-up
for adapter in "$@"; do
    train=(-m asarm train "${base[@]}")
    [[ $adapter != *fim ]] || train=("$here/train_fim.py" "$texts" --max_steps "$steps")
    # shellcheck disable=SC2086  # options without spaces
    "$python" "${train[@]}" ${differs[$adapter]} --output_dir "$output/$adapter"
done
