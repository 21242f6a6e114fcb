"""Settings of a training run."""

import json
from dataclasses import asdict, dataclass

from asarm.data.config import DataConfig
from asarm.models.gpt2 import AnyOrderGPT2, new_gpt2
from asarm.objective.loss import LossConfig
from asarm.objective.masking import MaskingConfig, MaskingPattern
from asarm.objective.text_gaps import TextGaps
from asarm.tokenization.codec import TextCodec
from asarm.training.cost_model import SequenceRows
from asarm.utils.config import check, check_at_least, check_choices, flat, option
from asarm.utils.errors import InputError


@dataclass
class ModelConfig:
    """Shape of a model trained from scratch."""

    vocab_size: int = option(6144, "tokens of the byte-level BPE trained on the training files")
    n_embd: int = option(256, "width")
    n_layer: int = option(5, "blocks")
    n_head: int = option(4, "attention heads")
    n_positions: int = option(512, "longest sequence, in tokens")

    def __post_init__(self) -> None:
        check_at_least(self, vocab_size=1)  # the model itself checks the others

    def build(self, codec: TextCodec) -> AnyOrderGPT2:
        """A randomly initialised `gpt2` backbone for a tokenizer with mask, eos and pad tokens."""
        return new_gpt2(codec, **(asdict(self) | {"vocab_size": len(codec)}))


@dataclass
class TrainingConfig:
    """How a model is trained."""

    output_dir: str = option("", "folder for the model, checkpoints, metrics and plots")
    init_from: str = option(
        "", "start from this model (AS-ARM, XLNet, GPT-2, Llama or Qwen; folder or Hub), not from scratch"
    )
    lora_rank: int = option(0, "train adapters of this rank, the rest frozen (llama backbone); 0: train all weights")
    init_revision: str = option("", "branch, tag or commit of it; the default is its main branch")
    white_space: str = option("auto", "plain, or tokens: newlines and indentation written as tokens, for XLNet on code")
    max_steps: int = option(1000, "optimiser steps")
    per_device_train_batch_size: int = option(4, "sequences in one micro-batch of one process")
    gradient_accumulation_steps: int = option(
        4, "micro-batches a step; masking rates are stratified over them and processes"
    )
    optimizer: str = option("adamw", "adamw, or muon: fewer tokens for the same loss (gpt2 backbone, no FSDP)")
    learning_rate: float = option(1e-3, "peak learning rate")
    scale_learning_rate: bool = option(False, "multiply the learning rates by the sequences of a step / 32")
    final_learning_rate: float = option(0.0, "learning rate at the last step; the decay is linear")
    warmup_steps: int = option(100, "steps of linear warm-up")
    weight_decay: float = option(0.1, "AdamW's, on matrices only")
    adam_beta2: float = option(0.95, "AdamW's second decay rate; the first is 0.9")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    bf16: bool = option(False, "bfloat16 autocast (pays on GPUs and on CPUs with AMX)")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")
    torch_compile: bool = option(False, "compile the network")
    seed: int = option(0, "seeds weights, data order and masks")
    eval_steps: int = option(200, "steps between validations")
    eval_blocks: int = option(64, "held-out sequences whose exact NLL is computed")
    eval_decodings: int = option(8, "held-out sequences decoded speculatively, 95 % of them masked; 0 for none")
    perplexity_model: str = option(
        "self", "causal language model that gives their generative perplexity; self: the model in training"
    )
    save_steps: int = option(200, "steps between checkpoints")
    save_total_limit: int = option(2, "newest checkpoints kept, besides the one with the best validation")
    logging_steps: int = option(10, "steps between lines of metrics.jsonl")
    report_to: list[str] = option(["none"], "trackers: tensorboard, wandb, trackio, or none")
    tracker_project: str = option("asarm", "project of wandb and trackio; tensorboard's folder in output_dir")
    tracker_run: str = option("", "name of the run in wandb and trackio; the default is that of output_dir")
    resume: str = option(
        "auto", "auto: resume from the newest whole checkpoint in output_dir, if any; never; or a checkpoint folder"
    )
    dry_run: bool = option(False, "print sizes, a memory estimate and the first packed sequences, and stop")

    def __post_init__(self) -> None:
        check(bool(self.output_dir), "no output_dir given")
        check_choices("white_space", [self.white_space], ("auto", "plain", "tokens"))
        check_choices("optimizer", [self.optimizer], ("adamw", "muon"))
        check_at_least(
            self, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=1, eval_blocks=1,
            eval_steps=1, save_steps=1, save_total_limit=1, logging_steps=1, final_learning_rate=0, warmup_steps=0,
            weight_decay=0, eval_decodings=0, lora_rank=0, seed=0,
        )  # fmt: skip
        check(not self.lora_rank or bool(self.init_from), "lora_rank needs a model to adapt: name it with init_from")
        check(self.seed < 2**32, f"seed must be below 2**32, not {self.seed}")
        check(self.learning_rate > 0, f"learning_rate must be above 0, not {self.learning_rate}")
        check(0 < self.adam_beta2 < 1, f"adam_beta2 must lie in (0, 1), not {self.adam_beta2}")
        check(self.max_grad_norm > 0, f"max_grad_norm must be above 0, not {self.max_grad_norm}")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up over steps 0..warmup_steps-1, then linear decay to final_learning_rate at the last step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        left = (self.max_steps - step) / max(1, self.max_steps - self.warmup_steps)
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left


@dataclass
class RunConfig:
    """All settings of a training run. `processes` below is their number in the run."""

    training: TrainingConfig
    data: DataConfig
    model: ModelConfig
    masking: MaskingConfig
    loss: LossConfig

    def sequences_per_step(self, processes: int) -> int:
        """Sequences of one optimiser step."""
        return self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps * processes

    def tokens_per_step(self, processes: int) -> int:
        """Tokens of one optimiser step, padding included."""
        return self.sequences_per_step(processes) * self.data.block_size

    def learning_rate_scale(self, processes: int) -> float:
        """What the learning rates are multiplied by."""
        return self.sequences_per_step(processes) / 32 if self.training.scale_learning_rate else 1.0

    def rows(self, rate: float, length: int) -> SequenceRows:
        """Rows of the network for a sequence of `length` tokens at a masking rate."""
        targets = max(1, int(rate * length))
        drafted = round(self.loss.draft_share * (targets - 1)) if self.loss.draft_weight > 0 else 0
        return SequenceRows(length, targets, drafted, is_parallel=self.loss.objective == "parallel")

    def most_rows(self) -> SequenceRows:
        """Rows at the masking rate that takes the most memory: many targets, or with `parallel` a long prompt."""
        masking = self.masking
        lowest = min(masking.rate(0, 0.0), masking.mask_low)
        return self.rows(lowest if self.loss.objective == "parallel" else masking.mask_high, self.data.block_size)

    def gaps(self, codec: TextCodec) -> MaskingPattern:
        """The arrangement of targets in a sequence. Raises InputError for lines with a tokenizer without newlines."""
        ends = codec.line_ends() if self.masking.mask_lines else []
        if self.masking.mask_lines and set(ends) <= {codec.eos_token_id}:
            raise InputError("mask_lines needs a tokenizer that keeps newlines, as --white_space tokens makes XLNet's")
        gaps = TextGaps(codec, self.masking.gap_kinds, self.masking.gap_tokens, self.masking.gap_spare)
        shares = self.masking.mask_spans, self.masking.mask_lines
        return MaskingPattern(*shares, ends, gaps if self.masking.mask_gaps else None, self.masking.mask_gaps)

    def settings(self, processes: int, training_blocks: int | None) -> dict:
        """Everything that makes the run what it is, as written to config.json.

        training_blocks: how many packed sequences the local files make; None for a streamed dataset.
        """
        derived = {"micro_batches_per_step": self.training.gradient_accumulation_steps * processes}
        if training_blocks is not None:
            derived["training_blocks"] = training_blocks
        return json.loads(json.dumps(flat(self) | derived))
