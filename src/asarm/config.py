"""Settings as dataclasses, checked when made. The command line is generated from them; names are `transformers`'."""

from dataclasses import dataclass, field


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def option(default, text: str):
    """A dataclass field with a default (a list is copied for each object) and a help text, shown as it is written."""
    metadata = {"help": text.replace("%", "%%")}  # argparse formats help texts with %
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class SamplerConfig:
    """How targets are filled. See `asarm.sampling`."""

    sampler: str = option("assd", "sequential, assd, fused or parallel (the last is not exact)")
    draft: str = option(
        "self", "what drafts: self (the model), ngram (assd: a bigram table), blind (fused: no draft head)"
    )
    coupling: str = option("residual", "how drafts meet the target law: residual, block or gumbel")
    k: int = option(5, "tokens drafted in one iteration of assd or fused")
    adaptive: bool = option(False, "fused drafts as many tokens, k at most, as it measures to be fastest")
    steps: int = option(16, "network calls of the parallel sampler")
    temperature: float = option(1.0, "divides the logits")
    tolerance: float = option(0.0, "accept with min(1, p/q + tolerance); above 0 the law is no longer exact")

    def __post_init__(self):
        _check(self.sampler in ("sequential", "assd", "fused", "parallel"), f"unknown sampler {self.sampler!r}")
        _check(self.draft in ("self", "ngram", "blind"), f"unknown draft {self.draft!r}: choose self, ngram or blind")
        known = ("residual", "block", "gumbel")
        _check(self.coupling in known, f"unknown coupling {self.coupling!r}: choose {', '.join(known)}")
        _check(
            self.sampler != "fused" or self.draft != "ngram",
            "fused drafts by the model, self or blind; ngram is for sampler assd",
        )
        _check(self.sampler == "fused" or self.draft != "blind", "draft blind (without draft head) is for fused only")
        _check(self.k >= 1, f"k must be at least 1, not {self.k}")
        _check(not self.adaptive or self.sampler == "fused", "adaptive needs the fused sampler")
        _check(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        _check(self.temperature > 0, f"temperature must be above 0, not {self.temperature}")
        _check(0 <= self.tolerance <= 1, f"tolerance must lie in [0, 1], not {self.tolerance}")
        _check(
            self.tolerance == 0 or self.coupling == "residual",
            "tolerance needs the residual coupling: gumbel accepts by equality, block whole prefixes at a time",
        )


@dataclass
class MaskingConfig:
    """Which share of a text is masked in training: uniform in [low, high], both moving linearly in the warm-up."""

    mask_start: float = option(0.15, "masking rate of the first step")
    mask_low: float = option(0.85, "lowest masking rate after the warm-up")
    mask_high: float = option(0.99, "highest masking rate after the warm-up")
    mask_warmup_steps: int = option(0, "steps in which the rates move from mask_start to [mask_low, mask_high]")
    mask_spans: float = option(0.0, "share of the texts whose masked tokens are one run, as gaps are; 0 is the paper's")
    mask_lines: float = option(0.0, "share of the texts whose masked tokens are whole lines, as gaps in code are")

    def __post_init__(self):
        for name in ("mask_start", "mask_low", "mask_high"):
            _check(0 < getattr(self, name) < 1, f"{name} must lie in (0, 1), not {getattr(self, name)}")
        _check(self.mask_low <= self.mask_high, f"mask_low={self.mask_low} is above mask_high={self.mask_high}")
        for name in ("mask_spans", "mask_lines"):
            _check(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], not {getattr(self, name)}")
        shares = self.mask_spans + self.mask_lines
        _check(shares <= 1, f"mask_spans and mask_lines are shares of the texts: together at most 1, not {shares}")
        _check(self.mask_warmup_steps >= 0, f"mask_warmup_steps must be at least 0, not {self.mask_warmup_steps}")

    def rate(self, step: int, quantile: float) -> float:
        """The masking rate of step (0, 1, ...) at a quantile in [0, 1] of its range."""
        moved = min(1.0, step / self.mask_warmup_steps) if self.mask_warmup_steps else 1.0
        low = self.mask_start + moved * (self.mask_low - self.mask_start)
        high = self.mask_start + moved * (self.mask_high - self.mask_start)
        return low + quantile * (high - low)


@dataclass
class DraftLossConfig:
    """The auxiliary loss for drafts: the same targets, seen from fewer ranks. Weight 0 is the paper's recipe."""

    draft_weight: float = option(0.0, "weight of the draft loss beside the joint loss")
    draft_window: int = option(5, "contexts are cut back by 1 .. draft_window - 1 ranks")
    draft_share: float = option(0.5, "share of the targets that are also drafted")

    def __post_init__(self):
        _check(self.draft_weight >= 0, f"draft_weight must be at least 0, not {self.draft_weight}")
        _check(self.draft_window >= 2, f"draft_window must be at least 2, not {self.draft_window}")
        _check(0 < self.draft_share <= 1, f"draft_share must lie in (0, 1], not {self.draft_share}")


@dataclass
class ModelConfig:
    """Shape of a model trained from scratch."""

    vocab_size: int = option(6144, "tokens of the byte-level BPE trained on the training files")
    n_embd: int = option(256, "width")
    n_layer: int = option(5, "blocks")
    n_head: int = option(4, "attention heads")
    n_positions: int = option(512, "longest text, in tokens")


@dataclass
class CorpusConfig:
    """A corpus of local files, tokenised once."""

    train_files: list[str] = option(
        [], "text, .jsonl or .parquet files (also .gz), and folders of them; `stdlib` is Python's own"
    )
    extensions: list[str] = option(
        [".txt", ".jsonl", ".parquet"], "which files of a folder, and of the folders in it, are read"
    )
    text_field: str = option("", "field of JSON lines, parquet and datasets; the default is text, or else content")
    held_out: float = option(0.02, "share of the text that is kept for validation")
    cache_dir: str = option("", "where tokens of local files are kept; the default is ~/.cache/asarm")

    def __post_init__(self):
        _check(0 < self.held_out <= 0.5, f"held_out must lie in (0, 0.5], not {self.held_out}")


@dataclass
class DataConfig(CorpusConfig):
    """What is trained on: a corpus of local files, or a dataset that is streamed."""

    dataset: str = option("", "stream this instead: a dataset on the Hub, or a folder of .jsonl or .parquet files")
    dataset_dir: str = option("", "folder in the dataset, such as python")
    dataset_revision: str = option("", "branch, tag or commit of the dataset; the default is its main branch")
    dataset_split: str = option("train", "split of the dataset")
    block_size: int = option(512, "tokens a packed text")
    streams: int = option(8, "readers that share a streamed dataset: a multiple of the number of processes")
    shuffle_buffer: int = option(1000, "documents of a stream whose texts are shuffled together")
    num_workers: int = option(2, "processes beside each training process that read its streams")

    def __post_init__(self):
        _check(bool(self.train_files) or bool(self.dataset), "no train_files given, and no dataset")
        _check(not (self.train_files and self.dataset), "both train_files and a dataset given: choose one")
        super().__post_init__()
        for name in ("block_size", "streams", "shuffle_buffer"):
            _check(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _check(self.num_workers >= 0, f"num_workers must be at least 0, not {self.num_workers}")


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
        _check(bool(self.output_dir), "no output_dir given")
        _check(self.white_space in ("auto", "plain", "tokens"), f"unknown white_space {self.white_space!r}")
        _check(self.optimizer in ("adamw", "muon"), f"unknown optimizer {self.optimizer!r}: choose adamw or muon")
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
            _check(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _check(self.learning_rate > 0, f"learning_rate must be above 0, not {self.learning_rate}")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "eval_decodings"):
            _check(getattr(self, name) >= 0, f"{name} must be at least 0, not {getattr(self, name)}")
        _check(0 < self.adam_beta2 < 1, f"adam_beta2 must lie in (0, 1), not {self.adam_beta2}")
        _check(self.max_grad_norm > 0, f"max_grad_norm must be above 0, not {self.max_grad_norm}")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up over steps 0..warmup_steps-1, then linear decay to final_learning_rate at the last step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        left = (self.max_steps - step) / max(1, self.max_steps - self.warmup_steps)
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left
