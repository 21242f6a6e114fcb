"""Settings of a training run."""

from dataclasses import dataclass

from asarm.utils.config import check, option


@dataclass
class ModelConfig:
    """Shape of a model trained from scratch."""

    vocab_size: int = option(6144, "tokens of the byte-level BPE trained on the training files")
    n_embd: int = option(256, "width")
    n_layer: int = option(5, "blocks")
    n_head: int = option(4, "attention heads")
    n_positions: int = option(512, "longest text, in tokens")


@dataclass
class TrainingConfig:
    """One training run."""

    output_dir: str = option("", "folder for the model, checkpoints, metrics and plots")
    init_from: str = option("", "start from this model (AS-ARM, XLNet or GPT-2; folder or Hub) instead of from scratch")
    init_revision: str = option("", "branch, tag or commit of it; the default is its main branch")
    white_space: str = option("auto", "plain, or tokens: newlines and indentation written as tokens, for XLNet on code")
    max_steps: int = option(1000, "optimiser steps")
    per_device_train_batch_size: int = option(4, "texts in one pass of one process")
    gradient_accumulation_steps: int = option(4, "passes a step; masking rates are stratified over them and processes")
    optimizer: str = option("adamw", "adamw, or muon: fewer tokens for the same loss (gpt2 backbone, no FSDP)")
    learning_rate: float = option(1e-3, "peak learning rate")
    scale_learning_rate: bool = option(False, "multiply the learning rates by the texts of a step / 32")
    final_learning_rate: float = option(0.0, "learning rate at the last step; the decay is linear")
    warmup_steps: int = option(100, "steps of linear warm-up")
    weight_decay: float = option(0.1, "AdamW's, on matrices only")
    adam_beta2: float = option(0.95, "AdamW's second decay rate; the first is 0.9")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    bf16: bool = option(False, "bfloat16 autocast (pays on GPUs and on CPUs with AMX)")
    gradient_checkpointing: bool = option(False, "compute activations anew in the backward pass: less memory, slower")
    torch_compile: bool = option(False, "compile the network")
    seed: int = option(0, "seeds weights, data order and masks")
    eval_steps: int = option(200, "steps between validations")
    eval_blocks: int = option(64, "held-out texts whose exact NLL is taken")
    eval_decodings: int = option(8, "held-out texts decoded speculatively, 95 % of them masked; 0 for none")
    save_steps: int = option(200, "steps between checkpoints")
    save_total_limit: int = option(2, "newest checkpoints kept, besides that with the best validation")
    logging_steps: int = option(10, "steps between lines of metrics.jsonl")
    report_to: list[str] = option(["none"], "trackers: tensorboard, wandb, trackio, or none")
    resume: str = option(
        "auto", "auto: go on from the newest whole checkpoint in output_dir, if any; never; or a checkpoint folder"
    )
    dry_run: bool = option(False, "print sizes, a memory estimate and the first packed text, and stop")

    def __post_init__(self):
        check(bool(self.output_dir), "no output_dir given")
        check(self.white_space in ("auto", "plain", "tokens"), f"unknown white_space {self.white_space!r}")
        check(self.optimizer in ("adamw", "muon"), f"unknown optimizer {self.optimizer!r}: choose adamw or muon")
        for name in (
            "max_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "eval_blocks",
            "eval_steps",
            "save_steps",
            "save_total_limit",
            "logging_steps",
        ):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        check(self.learning_rate > 0, f"learning_rate must be above 0, not {self.learning_rate}")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "eval_decodings"):
            check(getattr(self, name) >= 0, f"{name} must be at least 0, not {getattr(self, name)}")
        check(0 < self.adam_beta2 < 1, f"adam_beta2 must lie in (0, 1), not {self.adam_beta2}")
        check(self.max_grad_norm > 0, f"max_grad_norm must be above 0, not {self.max_grad_norm}")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up over steps 0..warmup_steps-1, then linear decay to final_learning_rate at the last step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        left = (self.max_steps - step) / max(1, self.max_steps - self.warmup_steps)
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left
