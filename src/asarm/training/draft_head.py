"""Training of a draft head (`asarm.models.draft_head`) for a model that is not changed: minutes, not hours.

The model's own conditionals are the teacher. A drafting query, to which the last 1..k tokens before its rank are not
shown, gives the state that the head sees; the query to which all are shown gives the distribution p of its position;
and the head's distribution q is fitted to p by their Kullback-Leibler divergence. (The probability of a rejection,
1 - sum of min(p, q), is what counts, but it makes a worse loss.)

Shapes: B sequences, N tokens, D drafting queries a sequence, M of them in the batch that lack the token to their left,
E width, V vocabulary.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from asarm.data.config import CorpusConfig
from asarm.data.packed import LocalBatches, blocks, evenly, local_corpus
from asarm.models.adapter import save_with_draft_head
from asarm.models.backbone import AnyOrderModel
from asarm.models.draft_head import DraftHead
from asarm.models.load import load_on_device, model_folder, pick_device
from asarm.models.rank_order import rank_order
from asarm.objective.loss import LossConfig, draft_queries
from asarm.objective.masking import MaskingPattern, training_targets
from asarm.tokenization.codec import TextCodec
from asarm.utils.config import check, check_at_least, flat, nested, option
from asarm.utils.errors import InputError
from asarm.utils.files import write_json, write_whole
from asarm.utils.folder_lock import locked
from asarm.utils.provenance import provenance
from asarm.utils.weights import ADAPTER_CONFIG

logger = logging.getLogger(__name__)
EVAL_BATCHES = 16
WARMUP_STEPS = 50


@dataclass
class DraftHeadConfig:
    """One training of a draft head."""

    corpus: CorpusConfig = nested(CorpusConfig)
    model: str = option("", "the model, a folder or a Hub repository; it is not changed")
    revision: str | None = option(None, "branch, tag or commit of a Hub repository")
    output_dir: str = option("", "folder for the model with its draft head")
    hidden: int = option(256, "hidden width of the head")
    window: int = option(5, "drafting queries do not see the last 1 .. window tokens")
    span_share: float = option(0.5, "share of the sequences whose masked tokens are one contiguous span")
    max_steps: int = option(1000, "optimiser steps")
    batch_size: int = option(2, "sequences a step")
    block_size: int = option(256, "tokens a sequence")
    learning_rate: float = option(2e-3, "peak learning rate of AdamW; 50 steps of warm-up, then linear decay")
    logging_steps: int = option(50, "steps between lines of the log")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    seed: int = option(0, "seeds weights, data order and masks")

    def __post_init__(self) -> None:
        check(bool(self.model), "no model given")
        check(bool(self.corpus.train_files), "no train_files given")
        check(bool(self.output_dir), "no output_dir given")
        check_at_least(self, hidden=1, window=1, max_steps=1, batch_size=1, logging_steps=1, block_size=8, seed=0)
        check(self.learning_rate > 0, f"learning_rate must be above 0, not {self.learning_rate}")
        check(0 <= self.span_share <= 1, f"span_share must lie in [0, 1], not {self.span_share}")


@dataclass
class DistillationBatch:
    """Drafting queries that lack the token to their left, flat over a batch, and what they should give.

    drafting, joint: [M, E], final states of the drafting query, and of the query at the same position that lacks no
    token. left: [M] int64, the token to the left. draft_depth: [M] int64, how many of the tokens before its rank the
    drafting query lacks.
    """

    drafting: torch.Tensor
    joint: torch.Tensor
    left: torch.Tensor
    draft_depth: torch.Tensor


@torch.no_grad()
def distillation_batch(
    model: AnyOrderModel, tokens: torch.Tensor, config: DraftHeadConfig, generator: torch.Generator
) -> DistillationBatch:
    """Drafting queries of sequences [B, N] int64 under random masks. generator: on the CPU."""
    rate = 0.1 + 0.89 * float(torch.rand((), generator=generator))
    target = training_targets(tokens, rate, MaskingPattern(config.span_share), generator).to(tokens.device)
    order = rank_order(~target, target)
    ranks, contexts = draft_queries(order, LossConfig(draft_window=config.window + 1, draft_share=1), generator)
    ranked = tokens.gather(1, order.order)  # [B, N]
    both = torch.cat((ranks, ranks), dim=1)  # [B, 2 D]
    states = model.hidden(
        ranked[:, :-1],
        order.order[:, :-1],
        order.content_context()[:1, :-1],
        order.order.gather(1, both),
        torch.cat((contexts, ranks), dim=1),
    )  # [B, 2 D, E]
    drafting, joint = states.chunk(2, dim=1)
    adjacent = order.order.gather(1, ranks - 1) + 1 == order.order.gather(1, ranks)  # [B, D]
    left = ranked.gather(1, ranks - 1)
    return DistillationBatch(*(part[adjacent] for part in (drafting, joint, left, ranks - contexts)))


def log_probs(
    model: AnyOrderModel, batch: DistillationBatch, use_head: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the teacher, and of the drafts with or without the head: [M, V] each."""
    drafting = model.follow(batch.drafting, batch.left) if use_head else batch.drafting
    teacher, draft = (torch.log_softmax(model.logits(states).float(), dim=-1) for states in (batch.joint, drafting))
    return teacher, draft


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of log-probs [M, V]: [M], in nats. Both give the mask token probability 0."""
    return (log_p.exp() * (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)).sum(-1)


def acceptance(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The probability [M] that a draft from q is accepted for p, if those before it were. Log-probs are [M, V]."""
    return torch.minimum(log_p, log_q).exp().sum(-1)


@torch.no_grad()
def mean_acceptance(model: AnyOrderModel, tokens: torch.Tensor, config: DraftHeadConfig) -> dict[str, list[float]]:
    """Mean acceptance of drafts that lack 1, 2, ... tokens, without and with the head, on sequences [n, N]."""
    generator = torch.Generator().manual_seed(config.seed)
    batches = [distillation_batch(model, part, config, generator) for part in tokens.split(config.batch_size)]
    draft_depth = torch.cat([batch.draft_depth for batch in batches])
    result = {}
    for name, use_head in (("without", False), ("with", True)):
        values = torch.cat([acceptance(*log_probs(model, batch, use_head)) for batch in batches if len(batch.left)])
        result[name] = [float(values[draft_depth == depth].mean()) for depth in draft_depth.unique().tolist()]
    return result


def add_head(model: AnyOrderModel, hidden: int) -> None:
    """Give the model a new draft head, which at first changes nothing. Only the head requires gradients."""
    model.requires_grad_(False)
    model.config.draft_head = hidden
    embedding = cast(torch.nn.Embedding, model.get_input_embeddings())
    model.add_draft_head(embedding.embedding_dim)
    head = cast(DraftHead, model.draft_head).to(model.device).requires_grad_(True)
    torch.nn.init.zeros_(head.proj.weight)
    torch.nn.init.zeros_(head.proj.bias)


def fit_head(model: AnyOrderModel, training: np.ndarray, config: DraftHeadConfig) -> None:
    """Train the model's draft head on blocks [n, N]."""
    batches = LocalBatches(training, config.batch_size, config.seed, rank=0, ranks=1)
    head = cast(DraftHead, model.draft_head)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, 1.0) * (1 - step / config.max_steps)
    )
    generator = torch.Generator().manual_seed(config.seed)
    accepted: list[float] = []
    for step, tokens in zip(range(1, config.max_steps + 1), batches, strict=False):
        batch = distillation_batch(model, as_tokens(tokens, model), config, generator)
        if len(batch.left):
            teacher, draft = log_probs(model, batch)
            loss = divergence(teacher, draft).mean()
            if not loss.isfinite():
                raise FloatingPointError(f"at step {step} the loss became {loss:.4g}: try a lower learning_rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            accepted.append(float(acceptance(teacher, draft).detach().mean()))
        schedule.step()
        if step % config.logging_steps == 0 and accepted:
            logger.info("step %d: %.3f of the drafts accepted", step, sum(accepted) / len(accepted))
            accepted.clear()


def train_draft_head(config: DraftHeadConfig) -> dict[str, list[float]]:
    """Train a head, write the model with it to output_dir, and return `mean_acceptance` on held-out sequences.

    Raises InputError if output_dir is not empty, another process is writing it, or model or data cannot be loaded.
    """
    output = Path(config.output_dir)
    with locked(output, beside=True):  # the folder itself is renamed
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise InputError(f"{output} is no empty folder: choose another output_dir")
        return _train_and_write(output, config)


def _train_and_write(output: Path, config: DraftHeadConfig) -> dict[str, list[float]]:
    torch.manual_seed(config.seed)
    model, codec = load_on_device(config.model, config.revision, "auto", pick_device(config.device), "float32")
    longest = model.config.n_positions
    check(config.block_size <= longest, f"block_size={config.block_size} is over the model's {longest} positions")
    add_head(model, config.hidden)
    training, held_out = (blocks(stream, config.block_size) for stream in local_corpus(config.corpus, codec))
    fit_head(model, training, config)
    some = evenly(held_out, EVAL_BATCHES * config.batch_size)
    results = mean_acceptance(model, as_tokens(some, model), config)
    write_whole(output, lambda path: _write(path, model, codec, config, results))
    return results


def as_tokens(blocks: np.ndarray, model: AnyOrderModel) -> torch.Tensor:
    """Blocks [n, N] of a corpus as tokens [n, N] int64 on the model's device."""
    return torch.from_numpy(blocks.astype("int64")).to(model.device)


def _write(
    path: Path, model: AnyOrderModel, codec: TextCodec, config: DraftHeadConfig, results: dict[str, list[float]]
) -> None:
    folder = model_folder(config.model, config.revision)
    if (folder / ADAPTER_CONFIG).is_file():
        save_with_draft_head(folder, model, path)
    else:
        model.save_pretrained(path)
    codec.save_pretrained(path)
    write_json(path / "draft_head.json", {"settings": flat(config), "acceptance": results} | provenance())
