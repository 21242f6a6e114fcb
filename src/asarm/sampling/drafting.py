"""Drafting with the model's draft head (`asarm.models.draft_head`): one after the other, each given the one before.

Shapes: B rows, W drafts, E width of states, V vocabulary.
"""

import torch

from asarm.sampling.counter_rng import TokenSampler
from asarm.sampling.decode_state import DecodeState


def drafts_by_head(state: DecodeState) -> bool:
    """Whether drafts go through the model's draft head."""
    return state.config.draft == "self" and state.model.draft_head is not None


def drafts_by_recurrent_head(state: DecodeState) -> bool:
    """Whether that head needs no drafting queries but for ranks whose left neighbour is not the rank before."""
    return drafts_by_head(state) and state.model.config.draft_recurrent


def without_left(state: DecodeState, count: int) -> list[bool]:
    """For each of the `count` ranks after the next: whether in any row the rank before is not its left neighbour.

    Where values cannot be seen this may be so for all of them.
    """
    if not state.sees_values:
        return [True] * count
    ranks = state.next_ranks(count + 1)[:, 1:]
    return (~follows_left(state, ranks) & (ranks < state.total[:, None])).any(0).tolist()


def follows_left(state: DecodeState, ranks: torch.Tensor) -> torch.Tensor:
    """Whether the rank before each of some ranks [B, W] int64, from 1 on, is its left neighbour: [B, W] bool."""
    return state.positions.gather(1, ranks - 1) + 1 == state.positions.gather(1, ranks)


def draft_by_head(
    state: DecodeState,
    sampler: TokenSampler,
    ranks: torch.Tensor,
    states: torch.Tensor,
    previous: torch.Tensor,
    first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw drafts for ranks [B, W] int64 that follow each other, and write them to the state.

    sampler: of positions of which the drafts' are those from number `first` on. states: [B, W, E], of the drafting
    queries. previous: [B, 1, E], the state that the token before was drawn from.
    Returns tokens [B, W] int64 and the log-probs [B, W, V] float32 that they were drawn with; or [B, W, D], of the
    first D tokens, if no others are drafted.
    """
    if not ranks.shape[1]:
        return ranks, torch.empty(*ranks.shape, state.model.config.vocab_size, device=ranks.device)
    tokens, log_q = [], []
    left = state.tokens.gather(1, ranks[:, :1] - 1)
    is_adjacent = follows_left(state, ranks)
    always = state.sees_values and bool(is_adjacent.all())
    for column in range(ranks.shape[1]):
        one = slice(column, column + 1)
        moved = state.model.follow(states[:, one], left, previous)
        # A token that is not to the left says nothing to the head.
        previous = moved if always else torch.where(is_adjacent[:, one, None], moved, states[:, one])
        log_q.append(state.draft_log_probs(previous, ranks[:, one], by_head=True))
        left = sampler.draw(log_q[-1], slice(first + column, first + column + 1))
        tokens.append(left)
        state.write_drafts(ranks[:, one], left)
    return torch.cat(tokens, dim=1), torch.cat(log_q, dim=1)
