"""The contract of every backbone. Samplers, objectives and evaluations know nothing else of a model.

Tokens come in rank order (see `asarm.models.rank_order`), so that a mask is one integer a row: how many ranks it sees.

Shapes: B rows of the batch, C content tokens, Q queries, E width, V vocabulary.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from asarm.models.draft_head import DraftHead
from asarm.models.kv_cache import KeyValueCache
from asarm.models.ops import linear

BLOCK_ROWS = 128


def joined_contexts(content_context: torch.Tensor, query_context: torch.Tensor) -> torch.Tensor:
    """Contexts [1 or B, C] and [1 or B, Q] of the two streams -> [1 or B, C + Q]."""
    rows = max(len(content_context), len(query_context))
    return torch.cat((content_context.expand(rows, -1), query_context.expand(rows, -1)), dim=1)


class RowBlock(NamedTuple):
    """Rows of the network that read keys together: rows first..stop-1, of which none sees more than `reach` ranks."""

    first: int
    stop: int
    reach: int


def row_blocks(context: torch.Tensor, count: int, seen: int) -> tuple[list[RowBlock], list[RowBlock]]:
    """Blocks of all rows, and of the queries alone. context: [1 or B, R] of `joined_contexts`, `count` rows of content.

    Contexts grow along each stream, so that in a pass over whole texts a block leaves out the keys of later ranks: half
    of all scores. The few rows of a decoding step are one block; so are all rows for a compiler, which does not wait
    for values.
    """
    rows = context.shape[1]
    queries = [RowBlock(count, rows, seen)]
    if rows <= BLOCK_ROWS or torch.compiler.is_compiling():
        return [RowBlock(0, rows, seen)], queries
    bounds = [*range(0, count, BLOCK_ROWS), *range(count, rows, BLOCK_ROWS), rows]
    furthest = context.clamp(1, seen).amax(0)  # [R]
    reaches = torch.stack([furthest[a:b].max() for a, b in pairwise(bounds)]).tolist()
    blocks = [RowBlock(a, b, reach) for (a, b), reach in zip(pairwise(bounds), reaches, strict=True)]
    return blocks, [block for block in blocks if block.first >= count] or queries


class AnyOrderModel(PreTrainedModel):
    """A two-stream model in rank order. Its config has `vocab_size`, `n_positions`, `mask_token_id` and `draft_head`.

    draft_head: the head that config.draft_head, its hidden width, asks for; None where that is 0.
    """

    supports_gradient_checkpointing = True

    def add_draft_head(self, width: int) -> None:
        """Give the model the draft head that `config.draft_head` asks for. width: of final states.

        The network is trained without it, and it without the network (`asarm.training.draft_head`).
        """
        hidden = self.config.draft_head
        self.draft_head = DraftHead(width, hidden).requires_grad_(False) if hidden else None

    @property
    def compute_dtype(self) -> torch.dtype:
        """What keys and values are computed in: the dtype of autocast where it is on, else that of the weights."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    def new_cache(self, batch: int, capacity: int, span: int, static: bool = False) -> KeyValueCache:
        """An empty cache for `batch` rows of at most `capacity` ranks, all at positions below `span`.

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
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        """Final states of the query stream [B, Q, E].

        tokens, positions: [B, C] int64, known tokens in rank order and their places in the text. Without a cache they
            have ranks 0..C-1; with one, row b's have ranks cache.lengths[b]..cache.lengths[b]+C-1.
        content_context: [B, C] int64, how many ranks each of them sees, itself counted (at least 1).
        query_positions: [B, Q] int64, the places to be predicted.
        query_context: [B, Q] int64, how many ranks each query sees; 0 is allowed.
        Contexts that are the same in all rows may be given once, as [1, C] and [1, Q]: masks are then shared.
        cache: takes the keys and values of the tokens; its lengths are left to the caller.

        Where the context lets a row see fewer ranks than there are, the rest of the row is padding.
        """
        raise NotImplementedError

    def output_layer(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight [V, E] and bias [V] (or None) that make logits of final states."""
        raise NotImplementedError

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final states [..., E] -> logits [..., V]; the mask token's is -inf, for it is never sampled."""
        logits = linear(hidden, *self.output_layer())
        if self.config.mask_token_id is not None:
            logits[..., self.config.mask_token_id] = float("-inf")
        return logits

    def follow(self, states: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Final states [B, Q, E] of drafting queries -> those that know the tokens [B, Q] to the left of their places.

        For models with a draft head (`draft_head` is not None).
        """
        return self.draft_head(states, self.get_input_embeddings()(left))

    def forward(self, *arguments, **keywords) -> torch.Tensor:
        """One function evaluation: logits [B, Q, V] of the queries. Arguments as in `hidden`."""
        return self.logits(self.hidden(*arguments, **keywords))
