"""The training loop: packed local text, joint loss plus optional draft loss, validation by exact NLL.

Everything random is a function of the seed and the step, so a resumed run repeats the uninterrupted one.
"""

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from asarm import data
from asarm.config import DraftLossConfig, MaskingConfig, ModelConfig, TrainingConfig
from asarm.errors import InputError
from asarm.evals.baselines import masked_nll, ngram_nll
from asarm.evals.plots import plot_training
from asarm.files import read_json_lines, write_json, write_json_lines, write_whole
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.load import load
from asarm.objective import training_loss
from asarm.provenance import provenance

logger = logging.getLogger(__name__)
VALIDATION_RATES = (0.15, 0.5, 0.95)
CHECKPOINT = "checkpoint"


def new_model(config: ModelConfig, tokenizer) -> AnyOrderGPT2:
    """A randomly initialised `gpt2` backbone for a tokenizer with mask, eos and pad tokens."""
    return AnyOrderGPT2(
        AnyOrderGPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            mask_token_id=tokenizer.mask_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_optimizer(model, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only, as GPT-2's trainers do."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


class Trainer:
    """One run. Build it, then call `run`; results lie in `config.output_dir`."""

    def __init__(self, config: TrainingConfig, shape: ModelConfig, masking: MaskingConfig, draft: DraftLossConfig):
        self.config, self.masking, self.draft = config, masking, draft
        self.output = Path(config.output_dir)
        if not config.resume and (self.output / "metrics.jsonl").exists():
            raise InputError(f"{self.output} holds an earlier run: add --resume, or choose another output_dir")
        self.accelerator = Accelerator(mixed_precision="bf16" if config.bf16 else "no")
        set_seed(config.seed)
        texts = [data.read_text(path) for path in data.text_files(config.train_files)]
        if config.init_from:
            model, self.tokenizer = load(config.init_from)
        else:
            self.tokenizer = data.train_tokenizer(texts, shape.vocab_size)
            model = new_model(shape, self.tokenizer)
        if config.block_size > model.config.n_positions:
            raise InputError(f"block_size={config.block_size} is over the model's {model.config.n_positions} positions")
        documents = [self.tokenizer(text, verbose=False)["input_ids"] for text in texts]
        self.train_blocks, self.held_out = (
            data.pack(part, self.tokenizer.eos_token_id, config.block_size)
            for part in data.split_documents(documents, config.held_out)
        )
        self.scored = data.evenly(self.held_out, config.eval_blocks)
        self.model, self.optimizer = self.accelerator.prepare(model, new_optimizer(model, config))
        self.step = 0
        settings = [asdict(part) for part in (config, shape, masking, draft)]
        write_json(self.output / "config.json", {k: v for part in settings for k, v in part.items()} | provenance())

    def train_step(self) -> dict[str, float]:
        """One optimiser step over all accumulation passes: mean losses and the norm of the gradient."""
        config, passes = self.config, self.config.gradient_accumulation_steps
        rng = np.random.default_rng([config.seed, 3, self.step])
        quantiles = (rng.permutation(passes) + rng.random(passes)) / passes
        totals = {"joint": 0.0, "draft": 0.0}
        for index in range(passes):
            micro = self.step * passes + index
            rows = data.batch_rows(len(self.train_blocks), micro, config.per_device_train_batch_size, config.seed)
            tokens = torch.from_numpy(self.train_blocks[rows]).long().to(self.accelerator.device)
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            with self.accelerator.autocast():
                rate = self.masking.rate(self.step, quantiles[index])
                losses = training_loss(self.model, tokens, rate, self.draft, generator)
            loss = losses.joint
            totals["joint"] += losses.joint.item() / passes
            if losses.draft is not None:
                loss = loss + self.draft.draft_weight * losses.draft
                totals["draft"] += losses.draft.item() / passes
            self.accelerator.backward(loss / passes)
        if not np.isfinite(totals["joint"] + totals["draft"]):
            raise FloatingPointError(f"the loss became {totals} at step {self.step}; try a lower learning_rate")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return totals | {"grad_norm": float(norm)}

    def validate(self) -> dict[str, float]:
        """Exact joint NLL (nats a token) of the held-out blocks at each validation rate; the masks never change."""
        self.model.eval()
        model = self.accelerator.unwrap_model(self.model)
        scores = {
            f"nll_{rate}": float(masked_nll(model, self.scored, rate, seed=0).mean()) for rate in VALIDATION_RATES
        }
        self.model.train()
        return scores

    def save_checkpoint(self) -> None:
        state = {
            "model": self.accelerator.get_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        write_whole(self.output / f"{CHECKPOINT}.pt", lambda path: torch.save(state, path))

    def load_checkpoint(self) -> None:
        path = self.output / f"{CHECKPOINT}.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        metrics = self.output / "metrics.jsonl"
        # Later steps are run again.
        write_json_lines(metrics, [line for line in read_json_lines(metrics) if line["step"] <= self.step])
        logger.info("resumed at step %d", self.step)

    def record(self, line: dict) -> None:
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step} | line) + "\n")

    def run(self) -> dict:
        """Train to max_steps, then save the model and `metrics.json`. Returns the final metrics."""
        config, start = self.config, time.time()
        if config.resume:
            self.load_checkpoint()
        tokens_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.block_size
        parameters = sum(p.numel() for p in self.model.parameters())
        logger.info(
            "%d parameters, %d training and %d held-out blocks of %d tokens, %d tokens a step",
            parameters, len(self.train_blocks), len(self.held_out), config.block_size, tokens_per_step,
        )  # fmt: skip
        self.model.train()
        first = self.step
        bar = tqdm(total=config.max_steps, initial=first, desc="training", unit="step", mininterval=5)
        while self.step < config.max_steps:
            losses = self.train_step()
            bar.update()
            if self.step % config.logging_steps == 0:
                rate = (self.step - first) * tokens_per_step / (time.time() - start)
                self.record(losses | {"lr": self.optimizer.param_groups[0]["lr"], "tokens_per_second": rate})
                bar.set_postfix(loss=f"{losses['joint']:.3f}", tok_s=f"{rate:.0f}")
            if self.step % config.eval_steps == 0 and self.step < config.max_steps:
                self.record(self.validate())
            if self.step % config.save_steps == 0:
                self.save_checkpoint()
        bar.close()
        self.save_checkpoint()
        final = self.validate()
        self.record(final)
        return self.finish(final, parameters, (self.step - first) * tokens_per_step, time.time() - start)

    def finish(self, scores: dict, parameters: int, tokens: int, seconds: float) -> dict:
        """Save weights and tokenizer to output_dir/model, metrics with baselines, and the loss curve."""

        def write(path: Path) -> None:
            self.accelerator.unwrap_model(self.model).save_pretrained(path)
            self.tokenizer.save_pretrained(path)

        write_whole(self.output / "model", write)
        baselines = {
            f"{name}_nll_{rate}": value
            for rate in VALIDATION_RATES
            for name, value in ngram_nll(self.train_blocks, self.scored, rate, len(self.tokenizer), seed=0).items()
        }
        metrics = {
            "steps": self.step, "parameters": parameters, "tokens_trained_now": tokens, "seconds": seconds,
        } | scores | baselines  # fmt: skip
        write_json(self.output / "metrics.json", metrics)
        plot_training(self.output)
        return metrics
