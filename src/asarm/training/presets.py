"""Presets of the training command: values that replace the dataclasses' defaults, and that any option overrides.

The paper's are those of the scripts of its repository (arXiv 2504.20456):

    paper-nlp               _run_training.sh, on OpenWebText
    paper-nlp-continued     _continue_training_nlp.sh, from the released weights (branch nlp)
    paper-nlp-infill        _train_nlp_infill.sh
    paper-code              _run_training.sh, on StarCoder's Python
    paper-code-single-line  _continue_training_code.sh

and of what all of these call, finetune_xlnet_distributed.py: XLNet-base, sequences packed to 512 tokens, AdamW with
torch's defaults, a learning rate of 1e-5 for each 32 sequences of a step, linear warm-up and decay, gradients clipped
to 1; and of its packed_dataset.py: documents end with what the tokenizer adds, and eos. Steps between validations and
checkpoints are ours, and what NOT_THE_PAPERS and NOTES say.

They are written for one GPU. On n GPUs divide `gradient_accumulation_steps` by n: the data, the masks and the learning
rate stay the same.
"""

from typing import Any

PAPER: dict[str, Any] = {
    "init_from": "xlnet/xlnet-base-cased",
    "document_end": "tokenizer",
    "block_size": 512,
    "learning_rate": 1e-5,
    "scale_learning_rate": True,
    "weight_decay": 0.01,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "bf16": True,
    "perplexity_model": "gpt2-large",
    "per_device_train_batch_size": 8,
    "eval_steps": 2500,
    "save_steps": 2500,
    "logging_steps": 50,
    "streams": 16,
    "shuffle_buffer": 2000,
    "num_workers": 4,
}
TEXT = {"dataset": "Skylion007/openwebtext"}
CODE = {"dataset": "bigcode/starcoderdata", "dataset_dir": "python", "text_field": "content", "white_space": "tokens"}
# The first stage: 24 million sequences, 32 a step; the peak learning rate is 1e-5.
FIRST_STAGE = {
    "gradient_accumulation_steps": 4,
    "max_steps": 750_000,
    "warmup_steps": 5000,
    "mask_start": 0.15,
    "mask_low": 0.85,
    "mask_high": 0.99,
    "mask_warmup_steps": 5000,
}
# The second stage for text: 120 million sequences, 384 a step; 1.2e-4.
CONTINUED = {
    "init_from": "therealgabeguo/ASARM",
    "init_revision": "nlp",
    "gradient_accumulation_steps": 48,
    "max_steps": 312_500,
    "warmup_steps": 5000,
    "mask_start": 0.90,
    "mask_low": 0.90,
    "mask_high": 0.99,
    "mask_warmup_steps": 5000,
}
# Infilling: 120 million sequences, 256 a step; 8e-5.
INFILL = {
    "gradient_accumulation_steps": 32,
    "max_steps": 468_750,
    "warmup_steps": 2500,
    "mask_warmup_steps": 2500,
}
# What the presets above do not take from the paper's scripts: options with the paper's values, and what is no option.
NOT_THE_PAPERS = {"bf16": False}
NOTES = (
    "weight decay is for matrices only; the paper's is for all parameters",
    "every sequence has masks of its own; in the paper's code those of a micro-batch share one",
    "processes read shares of the data, and shuffle them; in the paper's code each reads all of it, in its order",
)
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "train_files": ["stdlib"],
        "extensions": [".py"],
        "vocab_size": 2048,
        "n_embd": 128,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 512,
        "block_size": 128,
        "held_out": 0.05,
        "max_steps": 800,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 3e-3,
        "warmup_steps": 80,
        "mask_start": 0.15,
        "mask_low": 0.15,
        "mask_high": 0.99,
        "eval_steps": 200,
        "save_steps": 200,
        "eval_blocks": 32,
    },
    "small": {
        "init_from": "smollm2",
        "lora_rank": 16,
        "train_files": ["stdlib"],
        "extensions": [".py"],
        "block_size": 128,
        "held_out": 0.05,
        "max_steps": 30,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": 8e-4,
        "warmup_steps": 5,
        "mask_low": 0.05,
        "mask_high": 0.95,
        "mask_gaps": 0.6,
        "eval_steps": 30,
        "save_steps": 30,
        "eval_blocks": 8,
        "eval_decodings": 0,
        "logging_steps": 1,
    },
    "paper-nlp": PAPER | TEXT | FIRST_STAGE,
    "paper-nlp-continued": PAPER | TEXT | CONTINUED,
    "paper-nlp-infill": PAPER | TEXT | INFILL | {"mask_start": 0.15, "mask_low": 0.60, "mask_high": 0.75},
    "paper-code": PAPER | CODE | FIRST_STAGE,
    "paper-code-single-line": PAPER | CODE | INFILL | {"mask_start": 0.01, "mask_low": 0.05, "mask_high": 0.25},
}
