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
    ranks = state.next_ranks(count + 1)
    positions = state.positions.gather(1, ranks)
    is_apart = (positions[:, 1:] != positions[:, :-1] + 1) & (ranks[:, 1:] < state.total[:, None])
    return is_apart.any(0).tolist()


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
    Returns tokens [B, W] int64 and the log-probs [B, W, V] float32 that they were drawn with.
    """
    tokens = torch.zeros_like(ranks)
    log_q = torch.full((*ranks.shape, state.model.config.vocab_size), float("-inf"), device=ranks.device)
    for column in range(ranks.shape[1]):
        one = slice(column, column + 1)
        previous = follow(state, states[:, one], ranks[:, one], previous)
        log_q[:, one] = state.draft_log_probs(previous, ranks[:, one], by_head=True)
        tokens[:, one] = sampler.draw(log_q[:, one], slice(first + column, first + column + 1))
        state.write_drafts(ranks[:, one], tokens[:, one])
    return tokens, log_q


def follow(state: DecodeState, states: torch.Tensor, ranks: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """Draft states [B, 1, E] for ranks [B, 1], moved by the draft head where the rank before is the left neighbour.

    previous: [B, 1, E], the states that the tokens at the ranks before were drawn from.
    """
    before = ranks - 1
    adjacent = state.positions.gather(1, before) + 1 == state.positions.gather(1, ranks)  # [B, 1]
    moved = state.model.follow(states, state.tokens.gather(1, before), previous)
    return torch.where(adjacent[..., None], moved, states)
