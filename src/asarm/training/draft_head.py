"""Training of a draft head (`asarm.models.draft_head`) for a model that is not changed: minutes, not hours.

The model's own conditionals are the teacher. A window of drafts begins after every target of a text: that token is
drawn from the verifying query's state, and then come drafts, whose states the head makes from the token to the left and
the state that this was drawn from. Another window begins with every gap; of the given token to its left there is no
state. The head goes through the whole window, up to where the rank before is not the left neighbour, and the
distribution q of each draft is fitted to the model's p: first by their Kullback-Leibler divergence, then by what
counts, the probability sum of min(p, q) that a draft is accepted. Its logarithm is maximised, as in LK losses (arXiv
2602.23881); a new head, whose drafts are hardly ever accepted, learns little from it. The states of some batches are
kept, and used many times: the network is what takes time. In use the tokens to the left are the model's own, so a head
learns more from texts whose targets the model has sampled itself. That takes as many calls as a text has targets: on a
GPU, in large batches, seconds.

Shapes: B sequences, N tokens, T targets of the sequence with the most, M windows, W drafts of a window, E width, V
tokens that are drafted.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F

from asarm.data.config import CorpusConfig
from asarm.data.packed import LocalBatches, blocks, evenly, local_corpus
from asarm.models.adapter import save_with_draft_head
from asarm.models.backbone import AnyOrderModel
from asarm.models.draft_head import DraftHead
from asarm.models.load import load_on_device, model_folder, pick_device
from asarm.models.rank_order import rank_order
from asarm.objective.masking import MaskingPattern, training_batch
from asarm.objective.text_gaps import TextGaps
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.open_gaps import later_in_gap, open_targets
from asarm.utils.config import check, check_at_least, flat, nested, option
from asarm.utils.errors import InputError
from asarm.utils.files import write_json, write_whole
from asarm.utils.folder_lock import locked
from asarm.utils.provenance import provenance
from asarm.utils.weights import ADAPTER_CONFIG

logger = logging.getLogger(__name__)
EVAL_BATCHES = 8
WARMUP_STEPS = 50


@dataclass
class DraftHeadConfig:
    """One training of a draft head."""

    corpus: CorpusConfig = nested(CorpusConfig)
    model: str = option("", "the model, a folder or a Hub repository; it is not changed")
    revision: str | None = option(None, "branch, tag or commit of a Hub repository")
    output_dir: str = option("", "folder for the model with its draft head")
    hidden: int = option(512, "hidden width of the head")
    vocabulary: int = option(8192, "only tokens with lower ids are drafted (and the end of a gap); 0 for all")
    window: int = option(4, "drafts of the windows that the head goes through")
    span_share: float = option(0.5, "share of the sequences whose masked tokens are one contiguous span")
    line_share: float = option(0.0, "share of the sequences whose masked tokens are whole lines, as gaps in code are")
    gap_share: float = option(0.5, "share of the batches whose texts have gaps as `mask_gaps` makes them instead")
    gap_spare: int = option(16, "most spare positions of gaps of unknown length, if the model knows such gaps")
    own_share: float = option(0.0, "share of the batches whose masked tokens the model samples, as it does in use")
    batches: int = option(100, "different batches: their states are kept in memory, and used again and again")
    max_steps: int = option(1000, "optimiser steps")
    acceptance_share: float = option(0.3, "share of the steps, the last ones, that maximise acceptance itself")
    batch_size: int = option(8, "sequences of a batch")
    windows: int = option(192, "windows of drafts of a step, all of the same batch; at most as many as it has")
    block_size: int = option(128, "tokens a sequence")
    learning_rate: float = option(2e-3, "peak learning rate of AdamW; 50 steps of warm-up, then linear decay")
    logging_steps: int = option(50, "steps between lines of the log")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    seed: int = option(0, "seeds weights, data order and masks")

    def __post_init__(self) -> None:
        check(bool(self.model), "no model given")
        check(bool(self.corpus.train_files), "no train_files given")
        check(bool(self.output_dir), "no output_dir given")
        check_at_least(self, hidden=1, window=1, batches=1, max_steps=1, batch_size=1, logging_steps=1, block_size=8)
        check_at_least(self, seed=0, vocabulary=0, gap_spare=0, windows=1)
        check(self.learning_rate > 0, f"learning_rate must be above 0, not {self.learning_rate}")
        for name in ("span_share", "line_share", "gap_share", "own_share", "acceptance_share"):
            check(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], not {getattr(self, name)}")
        shares = self.span_share + self.line_share
        check(shares <= 1, f"span_share and line_share are shares of the sequences: together at most 1, not {shares}")

    def pattern(self, codec: TextCodec) -> MaskingPattern:
        """The arrangement of targets in a sequence."""
        ends = codec.line_ends() if self.line_share else []
        gaps = TextGaps(codec, most_spare=self.gap_spare)
        return MaskingPattern(self.span_share, self.line_share, ends, gaps, self.gap_share)


@dataclass
class DistillationBatch:
    """Windows of drafts, and what they should give.

    previous: [M, E], the state that the token before the window is drawn from; 0 for windows that begin gaps, whose
        first draft is made from the given token to the left alone.
    joint: [M, W, E], states of the verifying queries of the drafts. log_normaliser: [M, W], of their distributions.
    left: [M, W] int64, the token to the left. is_draft: [M, W] bool, false beyond the last target, and from the first
        position on whose left neighbour is not of the window.
    """

    previous: torch.Tensor
    joint: torch.Tensor
    log_normaliser: torch.Tensor
    left: torch.Tensor
    is_draft: torch.Tensor

    @property
    def begins_gap(self) -> torch.Tensor:
        """Which windows begin gaps: [M] bool."""
        return ~self.previous.any(-1)

    def select(self, windows: torch.Tensor) -> "DistillationBatch":
        """Some of the windows, by their indices or by a mask."""
        return DistillationBatch(*(getattr(self, field.name)[windows] for field in fields(self)))


def own_writing(model: AnyOrderModel, batch: InfillBatch, seed: int) -> InfillBatch:
    """The batch with targets as the model samples them. The rest of a gap that ends early is absent."""
    result = sample(model, *batch, SamplerConfig(sampler="sequential"), range(seed, seed + len(batch.tokens)))
    tokens = result.tokens.clone()  # not of inference mode, whose tensors are not to learn from
    gap_end = model.config.gap_end_token_id
    ended = open_targets(batch, gap_end)
    if gap_end is not None:
        ended &= tokens == gap_end
    return InfillBatch(tokens, batch.given, batch.target & ~later_in_gap(ended, batch.given))


@torch.no_grad()
def distillation_batch(model: AnyOrderModel, batch: InfillBatch, window: int) -> DistillationBatch:
    """All windows of a batch."""
    tokens, given, target = batch
    order = rank_order(given, target)
    prompt, length = order.prompt_length[:, None], order.length[:, None]  # [B, 1]
    ranks = prompt + torch.arange(int((length - prompt).max()), device=tokens.device)  # [B, T]
    is_target, ranks = ranks < length, ranks.minimum(length - 1)
    ranked, positions = tokens.gather(1, order.order), order.order.gather(1, ranks)
    seen = int(ranks.max())  # no query sees the token of the last rank
    states = model.hidden(
        ranked[:, :seen], order.order[:, :seen], order.content_context()[:, :seen].clamp(max=seen), positions, ranks
    )  # [B, T, E]
    log_normaliser = torch.stack([model.logits(row).float().logsumexp(-1) for row in states])  # [B, T]
    before, at_left = (ranks - 1).clamp(min=0), (positions - 1).clamp(min=0)
    left = tokens.gather(1, at_left)
    follows = is_target & (order.order.gather(1, before) + 1 == positions)
    has_left = (given | target).gather(1, at_left) & (positions > 0)
    begins = is_target & has_left & ~(follows & (ranks > prompt))
    count = ranks.shape[1]
    parts = []
    for first, previous in ((1, states), (0, torch.zeros_like(states))):  # after every target, and of every gap
        drafts = torch.arange(count)[:, None] + first + torch.arange(window)  # [T, W]
        inside, drafts = (drafts < count).to(tokens.device), drafts.clamp(max=count - 1)
        continues = follows[:, drafts] & inside  # [B, T, W]
        if first == 0:
            continues[..., 0] = begins
        is_draft = continues.cumprod(-1).bool()
        windows = (previous, states[:, drafts], log_normaliser[:, drafts], left[:, drafts], is_draft)
        some = is_draft[..., 0]
        parts.append([part[some] for part in windows])
    return DistillationBatch(*(torch.cat(both) for both in zip(*parts, strict=True)))


class DraftedTokens(NamedTuple):
    """Rows of the output layer for the tokens that are drafted: weight [V, E], bias [V] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, model: AnyOrderModel) -> "DraftedTokens":
        """Those of a model with a draft head."""
        weight, bias = (None if part is None else part.detach() for part in model.output_layer())
        assert weight is not None
        is_drafted = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        for ids in model.drafted():
            is_drafted[ids] = True
        for ids in model.never_sampled():
            is_drafted[ids] = False
        return cls(weight[is_drafted], None if bias is None else bias[is_drafted])

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """States [..., E] -> logits [..., V] float32."""
        return F.linear(states.to(self.weight.dtype), self.weight, self.bias).float()


def log_probs(
    model: AnyOrderModel, batch: DistillationBatch, tokens: DraftedTokens
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the teacher and of the head: [D, V] each, for all D drafts."""
    head = cast(DraftHead, model.draft_head)
    embedded = model.get_input_embeddings()(batch.left).float()  # [M, W, E]
    state, states = batch.previous.float(), []
    for column in range(batch.left.shape[1]):
        state = head(state, embedded[:, column], state)
        states.append(state)
    teacher = tokens.logits(batch.joint[batch.is_draft]) - batch.log_normaliser[batch.is_draft][:, None]
    return teacher, torch.log_softmax(tokens.logits(torch.stack(states, 1)[batch.is_draft]), dim=-1)


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of log-probs [D, V]: [D], in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def log_acceptance(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The log-probability [D] that a draft from q is accepted for p, if those before it were. Log-probs are [D, V]."""
    return torch.minimum(log_p, log_q).logsumexp(-1)


@torch.no_grad()
def mean_acceptance(model: AnyOrderModel, batches: list[DistillationBatch]) -> list[float]:
    """Mean acceptance of the first, second, ... drafts of windows, if those before were accepted."""
    if not any(len(batch.left) for batch in batches):
        return []
    tokens = DraftedTokens.of(model)
    column = torch.cat([batch.is_draft.nonzero()[:, 1] for batch in batches])  # [D]
    values = torch.cat([log_acceptance(*log_probs(model, batch, tokens)) for batch in batches]).exp()
    return [float(values[column == index].mean()) for index in column.unique().tolist()]


def add_head(model: AnyOrderModel, hidden: int, vocabulary: int) -> None:
    """Give the model a new draft head, which at first drafts all tokens alike. Only the head requires gradients.

    The head is in float32, whatever the model is. vocabulary: as in the config of the model.
    """
    model.requires_grad_(False)
    model.config.draft_head, model.config.draft_recurrent, model.config.draft_vocabulary = hidden, True, vocabulary
    embedding = cast(torch.nn.Embedding, model.get_input_embeddings())
    model.add_draft_head(embedding.embedding_dim)
    head = cast(DraftHead, model.draft_head).to(model.device).requires_grad_(True)
    torch.nn.init.zeros_(head.proj.weight)
    torch.nn.init.zeros_(head.proj.bias)


def fit_head(model: AnyOrderModel, batches: list[DistillationBatch], config: DraftHeadConfig) -> None:
    """Train the model's draft head on batches, which are taken in random order."""
    head = cast(DraftHead, model.draft_head)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, 1.0) * (1 - step / config.max_steps)
    )
    turns, tokens = np.random.default_rng(config.seed), DraftedTokens.of(model)
    accepted: list[float] = []
    for step in range(1, config.max_steps + 1):
        batch = batches[turns.integers(len(batches))]
        some = torch.from_numpy(turns.permutation(len(batch.left))[: config.windows])
        teacher, draft = log_probs(model, batch.select(some.to(model.device)), tokens)
        log_accepted = log_acceptance(teacher, draft)
        is_fitted = step <= config.max_steps * (1 - config.acceptance_share)
        loss = divergence(teacher, draft).mean() if is_fitted else -log_accepted.mean()
        if not loss.isfinite():
            raise FloatingPointError(f"at step {step} the loss became {loss:.4g}: try a lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accepted.append(float(log_accepted.detach().exp().mean()))
        schedule.step()
        if step % config.logging_steps == 0:
            logger.info("step %d: %.3f of the drafts accepted", step, sum(accepted) / len(accepted))
            accepted.clear()


def distilled(
    model: AnyOrderModel, batches: Iterable[np.ndarray], count: int, config: DraftHeadConfig, codec: TextCodec
) -> list[DistillationBatch]:
    """The first `count` of some batches of blocks [B, N], under random masks, less those without any draft.

    Raises InputError if there is no draft at all.
    """
    generator, own = (torch.Generator().manual_seed(config.seed + offset) for offset in range(2))
    pattern = config.pattern(codec)
    found = []
    for number, tokens in zip(range(1, count + 1), batches, strict=False):
        rate = 0.1 + 0.89 * float(torch.rand((), generator=generator))
        masked = training_batch(as_tokens(tokens, model), rate, pattern, generator)
        if config.own_share > float(torch.rand((), generator=own)):
            masked = own_writing(model, masked, int(torch.randint(2**62, (), generator=own)))
        batch = distillation_batch(model, masked, config.window)
        if len(batch.left):
            found.append(batch)
        if number % config.logging_steps == 0:
            logger.info("batch %d of %d read", number, count)
    if not found:
        raise InputError("none of the texts has a masked token after a known one: give more texts")
    return found


def train_draft_head(config: DraftHeadConfig) -> dict[str, list[float]]:
    """Train a head, write the model with it to output_dir, and return `mean_acceptance` on held-out sequences:
    `acceptance` of windows that come after a target, and `acceptance_at_start` of those that begin a gap.

    Raises InputError if output_dir is not empty, another process is writing it, or model or data cannot be loaded.
    """
    output = Path(config.output_dir)
    with locked(output, beside=True):  # the folder itself is renamed
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise InputError(f"{output} is no empty folder: choose another output_dir")
        return _train_and_write(output, config)


def _train_and_write(output: Path, config: DraftHeadConfig) -> dict[str, list[float]]:
    torch.manual_seed(config.seed)
    is_adapter = (model_folder(config.model, config.revision, weights=False) / ADAPTER_CONFIG).is_file()
    dtype = "auto" if is_adapter else "float32"  # others are written as a whole
    model, codec = load_on_device(config.model, config.revision, "auto", pick_device(config.device), dtype)
    longest = model.config.n_positions
    check(config.block_size <= longest, f"block_size={config.block_size} is over the model's {longest} positions")
    add_head(model, config.hidden, config.vocabulary)
    training, held_out = (blocks(stream, config.block_size) for stream in local_corpus(config.corpus, codec))
    some = evenly(held_out, EVAL_BATCHES * config.batch_size)
    size = config.batch_size
    held_out_batches = [some[first : first + size] for first in range(0, len(some), size)]
    evaluated = distilled(model, held_out_batches, EVAL_BATCHES, config, codec)
    batches = LocalBatches(training, size, config.seed, rank=0, ranks=1)
    fit_head(model, distilled(model, batches, config.batches, config, codec), config)
    results = {
        "acceptance": mean_acceptance(model, [batch.select(~batch.begins_gap) for batch in evaluated]),
        "acceptance_at_start": mean_acceptance(model, [batch.select(batch.begins_gap) for batch in evaluated]),
    }
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
    write_json(path / "draft_head.json", {"settings": flat(config)} | results | provenance(model.device))
