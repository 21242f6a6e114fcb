"""The contract of every backbone, `AnyOrderModel`, and what its attention layers share.

Samplers, objectives and evaluations know nothing else of a model. Tokens come in rank order (see
`asarm.models.rank_order`), so that a mask is one integer a row: how many ranks it sees.

Shapes: B rows of the batch, C content tokens, Q queries, R = C + Q rows of the network, T visible ranks, E width,
H heads, D head width, V vocabulary.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from asarm.models.draft_head import DraftHead
from asarm.models.kv_cache import KeyValueCache
from asarm.models.ops import may_look, packed_linear
from asarm.utils.config import check, check_at_least

BLOCK_ROWS = 128


def check_settings(config: Any, *sizes: str) -> None:
    """Raise InputError for settings, of those that every backbone's config has, that cannot be.

    sizes: names of the settings that count layers, heads, or the width of something.
    """
    check_at_least(config, **dict.fromkeys(("vocab_size", "n_positions", *sizes), 1))
    check_at_least(config, draft_head=0, draft_vocabulary=0, initializer_range=0)
    for name, least in (("mask_token_id", 0), ("n_tokens", 1), ("gap_end_token_id", 0)):
        value = getattr(config, name)
        check(
            value is None or least <= value < config.vocab_size,
            f"{name}={value} must lie in {least}..vocab_size - 1, and vocab_size is {config.vocab_size}",
        )
    white_space = getattr(config, "white_space", None)
    check(white_space in (None, "plain", "tokens"), f"white_space={white_space!r} must be plain or tokens")
    quantized = getattr(config, "quantization_config", None)
    check(quantized is None, "quantization_config is set: quantized weights cannot be read")


class AnyOrderModel(PreTrainedModel):
    """A two-stream model in rank order.

    Its config has `vocab_size`, `n_positions` (of the longest sequence), `mask_token_id`, `n_tokens` (rows of the
    vocabulary that belong to tokens, the first ones; None if all do), `gap_end_token_id` (None for models that fill
    gaps of known length only), `draft_head`, `draft_recurrent` and `draft_vocabulary`.

    draft_head: None, or the draft head whose hidden width is config.draft_head. It drafts only tokens with ids below
    config.draft_vocabulary (0 for all), which in most vocabularies are the most frequent ones, and the end of a gap.
    """

    supports_gradient_checkpointing = True
    draft_head: DraftHead | None

    def add_draft_head(self, width: int) -> None:
        """Give the model the draft head that `config.draft_head` asks for. width: of final states.

        The head is trained by itself (`asarm.training.draft_head`), with the network frozen.
        """
        hidden = self.config.draft_head
        self.draft_head = (
            DraftHead(width, hidden, self.config.draft_recurrent).requires_grad_(False) if hidden else None
        )

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of keys and values: that of autocast where it is on, else that of the weights."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    def new_cache(self, batch: int, capacity: int, span: int, static: bool = False) -> Any:
        """An empty `KeyValueCache` for `batch` rows of at most `capacity` ranks, all at positions below `span`.

        static: see `KeyValueCache`. The weights must not change while the cache is used.
        """
        raise NotImplementedError

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        content_context: torch.Tensor,
        query_positions: torch.Tensor,
        query_context: torch.Tensor,
        cache: Any = None,
        beside: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final states of the query stream [B, Q, E].

        tokens, positions: [B, C] int64, known tokens in rank order and their positions in the sequence. Without a cache
            they have ranks 0..C-1; with one, row b's have ranks cache.lengths[b]..cache.lengths[b]+C-1.
        content_context: [B, C] int64, how many ranks each of them sees, including its own (at least 1). A backbone that
            is causal by rank (`llama`) shows it none beyond its own.
        query_positions: [B, Q] int64, the positions to be predicted.
        query_context: [B, Q] int64, how many ranks each query sees; 0 is allowed.
        Contexts that are the same in all rows may be given once, as [1, C] and [1, Q]: masks are then shared.
        cache: of `new_cache`. It stores keys and values of the tokens; its lengths are left to the caller.
        beside: [B, C + Q] int64, one more rank that each row sees, or -1 for none: content first. With a cache only.
            Tokens can so be alternatives to those of lower ranks: in the context of rows that see them instead.

        Where the contexts of a row are less than the number of ranks, the rest of the row is padding.
        """
        raise NotImplementedError

    def output_layer(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight [V, E] and bias [V] (or None) that turn final states into logits."""
        raise NotImplementedError

    def never_sampled(self) -> list[slice]:
        """Ids whose probability is 0 everywhere: the mask token's, and those of rows that belong to no token."""
        mask, tokens = self.config.mask_token_id, getattr(self.config, "n_tokens", None)
        masks = [] if mask is None else [slice(mask, mask + 1)]
        return masks if tokens is None else [*masks, slice(tokens, self.config.vocab_size)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final states [..., E] -> logits [..., V], -inf for ids that are never sampled."""
        return self.without_never_sampled(packed_linear(hidden, *self.output_layer()))

    def without_never_sampled(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [..., V], which are changed, with -inf for ids that are never sampled."""
        for ids in self.never_sampled():
            logits[..., ids].fill_(float("-inf"))
        return logits

    def follow(self, states: torch.Tensor, left: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Final states [B, Q, E] of drafting queries, conditioned on the tokens [B, Q] to their left: [B, Q, E].

        previous: [B, Q, E], the states that those tokens were drawn from. For models that have a draft head.
        """
        assert self.draft_head is not None
        return self.draft_head(states, self.get_input_embeddings()(left), previous)

    def draft_logits(self, states: torch.Tensor, every_id: bool = True) -> torch.Tensor:
        """States [..., E] of the draft head -> logits [..., V], -inf for ids that are not drafted.

        every_id: else [..., D], of the first ids, which are drafted, and not of the end of a gap, if it comes later.

        Reading the whole output layer for each draft would cost more than the head does.
        """
        first, *end = self.drafted()
        logits = self._logits_of(first, states)
        if every_id:
            logits = F.pad(logits, (0, self.config.vocab_size - first.stop), value=float("-inf"))
            for ids in end:
                logits[..., ids] = self._logits_of(ids, states)
        return self.without_never_sampled(logits)

    def _logits_of(self, ids: slice, states: torch.Tensor) -> torch.Tensor:
        """Logits of some tokens: [..., ids]."""
        weight, bias = self.output_layer()
        return packed_linear(states, weight[ids], None if bias is None else bias[ids])

    def drafted(self) -> list[slice]:
        """Ids of the tokens that the draft head drafts, but for those that are never sampled."""
        size, end = self.config.vocab_size, self.config.gap_end_token_id
        count = min(self.config.draft_vocabulary or size, size)
        return [slice(count)] if end is None or end < count else [slice(count), slice(end, end + 1)]

    def forward(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """One function evaluation: logits [B, Q, V] of the queries. Arguments as in `hidden`."""
        return self.logits(self.hidden(*arguments, **keywords))


class RowBlock(NamedTuple):
    """Rows start..stop-1 of the network, which read keys together: none of them sees more than `reach` ranks."""

    start: int
    stop: int
    reach: int


class Visibility(NamedTuple):
    """What the rows of the network, content first, may read.

    unseen: [1 or B, 1, R, T] bool, the ranks that a row does not see.
    empty: [1 or B, R, 1] bool, rows that see nothing. They get one key all the same, and what they read is discarded.
        None where the host sees that there are none.
    every_row, query_rows: blocks of all rows, and of the queries alone.
    """

    unseen: torch.Tensor
    empty: torch.Tensor | None
    every_row: list[RowBlock]
    query_rows: list[RowBlock]


def visibility(
    count: int,
    content_context: torch.Tensor,
    query_context: torch.Tensor,
    cache: KeyValueCache | None,
    beside: torch.Tensor | None = None,
) -> Visibility:
    """What `count` rows of content and all queries may read. Contexts, cache, beside: as in `AnyOrderModel.hidden`.

    For a compiler `count` must be the size of the very tensor that the rows are made of.
    """
    batch = max(len(content_context), len(query_context))
    context = torch.cat((content_context.expand(batch, -1), query_context.expand(batch, -1)), dim=1)  # [1 or B, R]
    reach = context if beside is None else context.maximum(beside + 1)
    ranks = max(count, 1) if cache is None else cache.visible_slots(reach)
    slots, empty = torch.arange(ranks, device=context.device), reach == 0
    shown = context.clamp(min=1) if beside is None else torch.where(empty, 1, context)
    unseen = slots >= shown[:, None, :, None]
    if beside is not None:
        unseen = unseen & (slots != beside[:, None, :, None])
    some = None if may_look(empty) and not empty.any() else empty[..., None]
    return Visibility(unseen, some, *row_blocks(reach, count, ranks))


def row_blocks(context: torch.Tensor, count: int, ranks: int) -> tuple[list[RowBlock], list[RowBlock]]:
    """Blocks of all rows, and of the queries alone. context: [1 or B, R], `count` rows of which are content.

    Contexts grow along each stream, so that in a pass over whole sequences a block need not read the keys of later
    ranks, which saves half of all scores. The few rows of a decoding step are one block. So are all rows for a
    compiler, which cannot wait for values.
    """
    rows = context.shape[1]
    queries = [RowBlock(count, rows, ranks)]
    if rows <= BLOCK_ROWS or torch.compiler.is_compiling():
        return [RowBlock(0, rows, ranks)], queries
    bounds = [*range(0, count, BLOCK_ROWS), *range(count, rows, BLOCK_ROWS), rows]
    furthest = context.clamp(1, ranks).amax(0)  # [R]
    reaches = torch.stack([furthest[a:b].max() for a, b in pairwise(bounds)]).tolist()
    blocks = [RowBlock(a, b, reach) for (a, b), reach in zip(pairwise(bounds), reaches, strict=True)]
    return blocks, [block for block in blocks if block.start >= count] or queries


def joined(read: Sequence[torch.Tensor], empty: torch.Tensor | None) -> torch.Tensor:
    """What the last rows read, block by block [B, rows, H * D] -> [B, R, H * D]; 0 in rows that are `empty` (of all
    rows, as in `Visibility`)."""
    rows = read[0] if len(read) == 1 else torch.cat(tuple(read), dim=1)
    return rows if empty is None else rows.masked_fill(empty[:, empty.shape[1] - rows.shape[1] :], 0.0)


def readable(
    keys: torch.Tensor, values: torch.Tensor, cache: KeyValueCache | None, layer: int, ranks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `ranks` keys and values, [B, H, T, D] each, once those of the new content [B, H, C, D] are known.

    A cache stores the new ones as those of a layer. Without one, and without content, there is one scratch key.
    """
    if cache is not None:
        cache.write(layer, keys, values)
        return cache.read(layer, ranks)
    if keys.shape[2] == 0:
        scratch = keys.new_zeros(*keys.shape[:2], 1, keys.shape[3])
        return scratch, scratch
    return keys, values
