"""The contract of every backbone. Samplers, objectives and evaluations know nothing else of a model.

Tokens come in rank order (see `asarm.order`), so that a mask is one integer a row: how many ranks it sees.

Shapes: B rows of the batch, C content tokens, Q queries, E width, V vocabulary.
"""

import torch
from transformers import PreTrainedModel

from asarm.cache import KeyValueCache
from asarm.models.linear import linear


class AnyOrderModel(PreTrainedModel):
    """A two-stream model in rank order. Its config has `vocab_size`, `n_positions` and `mask_token_id`."""

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

    def forward(self, *arguments, **keywords) -> torch.Tensor:
        """One function evaluation: logits [B, Q, V] of the queries. Arguments as in `hidden`."""
        return self.logits(self.hidden(*arguments, **keywords))
