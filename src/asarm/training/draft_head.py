"""Training of a draft head (`asarm.models.draft_head`) for a model that stays as it is: minutes, not hours.

The network's own laws are the teacher. A query that lacks 1..k tokens before its place gives the states that the head
sees, the query that lacks none gives the law p of the place, and the head's law q is drawn to p by cross-entropy. (The
chance of a rejection, 1 - sum of min(p, q), is what counts, but as a loss it does worse.)

Shapes: B texts, N tokens, D drafting queries, M of them with the left neighbour among the tokens they lack, E width.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from asarm.data.config import CorpusConfig
from asarm.data.packed import LocalBatches, blocks, evenly, local_corpus
from asarm.models.load import load, pick_device
from asarm.models.rank_order import rank_order
from asarm.objective.loss import DraftLossConfig, draft_queries
from asarm.objective.masking import Gaps, training_targets
from asarm.utils.config import option
from asarm.utils.errors import InputError
from asarm.utils.files import write_json, write_whole
from asarm.utils.provenance import provenance

logger = logging.getLogger(__name__)
EVAL_BATCHES = 16


@dataclass
class DraftHeadConfig(CorpusConfig):
    """One training of a draft head."""

    model: str = option("", "the model, a folder or a Hub repository; it is not changed")
    revision: str | None = option(None, "branch, tag or commit of a Hub repository")
    output_dir: str = option("", "folder for the model with its draft head")
    hidden: int = option(256, "hidden width of the head")
    window: int = option(5, "drafting queries lack 1 .. window tokens")
    span_share: float = option(0.5, "share of the texts whose masked tokens are one run")
    max_steps: int = option(1000, "optimiser steps")
    batch_size: int = option(2, "texts a step")
    block_size: int = option(256, "tokens a text")
    learning_rate: float = option(2e-3, "peak learning rate of AdamW; 50 steps of warm-up, then linear decay")
    logging_steps: int = option(50, "steps between lines of the log")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    seed: int = option(0, "seeds weights, data order and masks")

    def __post_init__(self):
        super().__post_init__()
        for name in ("model", "train_files", "output_dir"):
            if not getattr(self, name):
                raise InputError(f"no {name} given")
        for name in ("hidden", "window", "max_steps", "batch_size", "logging_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.block_size < 8:
            raise InputError(f"block_size must be at least 8, not {self.block_size}")
        if not 0 <= self.span_share <= 1:
            raise InputError(f"span_share must lie in [0, 1], not {self.span_share}")


@dataclass
class DistillationBatch:
    """Drafting queries whose left neighbour they lack, flat over the batch.

    drafting, joint: [M, E], states of the query that drafts and of the one that lacks nothing. left: [M] int64, the
    token to the left. draft_depth: [M] int64, how many tokens before its place the drafting query lacks.
    """

    drafting: torch.Tensor
    joint: torch.Tensor
    left: torch.Tensor
    draft_depth: torch.Tensor


@torch.no_grad()
def distillation_batch(
    model, tokens: torch.Tensor, config: DraftHeadConfig, generator: torch.Generator
) -> DistillationBatch:
    """What a batch of texts [B, N] teaches, under random masks. generator: on the CPU."""
    rate = 0.1 + 0.89 * float(torch.rand((), generator=generator))
    target = training_targets(tokens, rate, Gaps(config.span_share), generator).to(tokens.device)
    order = rank_order(~target, target)
    ranks, contexts = draft_queries(order, DraftLossConfig(draft_window=config.window + 1, draft_share=1), generator)
    ranked = tokens.gather(1, order.order)
    both = torch.cat((ranks, ranks), dim=1)
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


def log_laws(model, distillation_batch: DistillationBatch, head: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-laws of the places, and of the drafts with or without the head: [M, V] each."""
    states = model.follow(distillation_batch.drafting, distillation_batch.left) if head else distillation_batch.drafting
    return tuple(torch.log_softmax(model.logits(x).float(), dim=-1) for x in (distillation_batch.joint, states))


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence [M], in nats. The mask token is in neither law."""
    return (log_p.exp() * (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)).sum(-1)


def acceptance(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The chance [M] that a draft is accepted, if all before it were."""
    return torch.minimum(log_p, log_q).exp().sum(-1)


@torch.no_grad()
def measure(model, texts: torch.Tensor, config: DraftHeadConfig) -> dict[str, list[float]]:
    """Mean acceptance of drafts that lack 1, 2, ... tokens, without and with the head, on held-out texts [n, N]."""
    generator = torch.Generator().manual_seed(config.seed)
    lessons = [distillation_batch(model, batch, config, generator) for batch in texts.split(config.batch_size)]
    draft_depth = torch.cat([x.draft_depth for x in lessons])
    result = {}
    for name, head in (("without", False), ("with", True)):
        values = torch.cat([acceptance(*log_laws(model, x, head)) for x in lessons if len(x.left)])
        result[name] = [float(values[draft_depth == number].mean()) for number in draft_depth.unique().tolist()]
    return result


def train_draft_head(config: DraftHeadConfig) -> dict:
    """Train, write the model with its head to output_dir, and return its acceptance on held-out texts."""
    output = Path(config.output_dir)
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty: choose another output_dir")
    torch.manual_seed(config.seed)
    model, codec = load(config.model, config.revision)
    model = model.to(pick_device(config.device)).requires_grad_(False)
    model.config.draft_head = config.hidden
    model.add_draft_head(model.get_input_embeddings().weight.shape[1])
    head = model.draft_head.to(model.device).requires_grad_(True)
    torch.nn.init.zeros_(head.proj.weight)  # at first the head changes nothing
    torch.nn.init.zeros_(head.proj.bias)

    training, held_out = (blocks(stream, config.block_size) for stream in local_corpus(config, codec))
    batches = LocalBatches(training, config.batch_size, config.seed, rank=0, ranks=1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1.0) * (1 - step / config.max_steps)
    )
    generator = torch.Generator().manual_seed(config.seed)
    accepted = []
    for step, batch in zip(range(1, config.max_steps + 1), batches, strict=False):
        taught = distillation_batch(model, as_tokens(batch, model), config, generator)
        if len(taught.left):
            laws = log_laws(model, taught)
            loss = divergence(*laws).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            accepted.append(float(acceptance(*laws).detach().mean()))
        schedule.step()
        if step % config.logging_steps == 0 and accepted:
            logger.info("step %d: %.3f of the drafts accepted", step, sum(accepted) / len(accepted))
            accepted.clear()
    results = measure(model, as_tokens(evenly(held_out, EVAL_BATCHES * config.batch_size), model), config)
    write_whole(output, lambda path: _write(path, model, codec, config, results))
    return results


def as_tokens(batch, model) -> torch.Tensor:
    """Texts [B, N] of a corpus as the model takes them."""
    return torch.from_numpy(batch.astype("int64")).to(model.device)


def _write(path: Path, model, codec, config: DraftHeadConfig, results: dict) -> None:
    model.save_pretrained(path)
    codec.save_pretrained(path)
    write_json(path / "draft_head.json", {"settings": asdict(config), "acceptance": results} | provenance())
