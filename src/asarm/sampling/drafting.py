"""Drafting with the model's draft head (`asarm.models.draft_head`), and alternatives to drafts.

The head drafts one token after the other, each given the one before. Where a draft is rejected, its position often
gets a runner-up. So a window's function evaluation also takes some other tokens instead of its drafts, each seen by one
query alone, that for the rank after it. Whatever verification decides, if the token in the position of the first
rejected draft is one of them, the distribution of the token after that is known, too, and it is drawn at once. (Trees
of drafts, as in SpecInfer, arXiv 2305.09781, have such leaves, and branches. Here only drafts have children: a branch
would be more tokens to draft and to evaluate, and is rarely reached.) The rows cost little where reading the weights
is what takes time.

Shapes: B rows, W drafts, A alternatives to any of them, E width of states, V vocabulary.
"""

from dataclasses import dataclass

import torch

from asarm.models.rank_order import left_neighbours
from asarm.sampling.counter_rng import TokenSampler, at_column
from asarm.sampling.decode_state import DecodeState
from asarm.sampling.verification import DraftWindow, Verdict


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
    """Whether the rank before each of some ranks [B, W] int64 is its left neighbour: [B, W] bool."""
    return state.positions.gather(1, (ranks - 1).clamp(min=0)) + 1 == state.positions.gather(1, ranks)


def before_first_call(state: DecodeState, nothing: torch.Tensor, drafts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a recurrent head drafts the first `drafts` tokens from, when the network was not called yet.

    All that it is told of is the given token to the left of the first one. Rows without one get no drafts, and others
    get drafts up to where the rank before is not the left neighbour.
    nothing: zeros [B, 1, E], instead of the state that the token to the left was drawn from.
    Returns the state of the first draft [B, 1, E], and numbers of drafts [B] int64.
    """
    ranks = state.next_ranks(drafts)  # [B, W]
    is_given = (state.columns < state.decoded[:, None])[:, None]  # [B, 1, R]
    left = left_neighbours(state.tokens, state.positions, state.positions.gather(1, ranks[:, :1]), is_given)  # [B, 1]
    continues = torch.cat((left >= 0, follows_left(state, ranks[:, 1:])), dim=1)
    return state.model.follow(nothing, left.clamp(min=0), nothing), continues.cumprod(1).sum(1).minimum(state.remaining)


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
    Returns tokens [B, W] int64 and the weights [B, W, V] float32 that the sampler drew them by; or [B, W, D], of the
    first D tokens, if no others are drafted.
    """
    if not ranks.shape[1]:
        return ranks, previous.new_empty(*ranks.shape, state.model.config.vocab_size, dtype=torch.float32)
    tokens, weights = [], []
    left = state.tokens.gather(1, (ranks[:, :1] - 1).clamp(min=0))
    is_adjacent = follows_left(state, ranks)
    always = state.sees_values and bool(is_adjacent.all())
    for column in range(ranks.shape[1]):
        one = slice(column, column + 1)
        moved = state.model.follow(states[:, one], left, previous)
        # A token that is not to the left says nothing to the head.
        previous = moved if always else torch.where(is_adjacent[:, one, None], moved, states[:, one])
        weights.append(sampler.weights(state.draft_logits(previous, ranks[:, one], by_head=True)))
        left = sampler.draw(weights[-1], first + column)
        tokens.append(left)
        state.write_drafts(ranks[:, one], left)
    return torch.cat(tokens, dim=1), torch.cat(weights, dim=1)


@dataclass
class Alternatives:
    """tokens: [B, A] int64. columns: [A] int64, the columns of the drafts that they are alternatives to, ascending."""

    tokens: torch.Tensor
    columns: torch.Tensor

    def ranks(self, decoded: torch.Tensor) -> torch.Tensor:
        """Their ranks [B, A] int64, where decoded [B] is that of the first draft."""
        return decoded[:, None] + self.columns


def count_alternatives(to_first: int, drafts: int) -> int:
    """How many there are in a window: to_first to the first draft, one less to the second, and so on."""
    return sum(to_first - column for column in range(min(drafts, to_first)))


def alternatives_to(window: DraftWindow) -> Alternatives | None:
    """Those of a window's that count, None if there are none."""
    if window.alternatives is None:
        return None
    _, drafts, to_first = window.alternatives.shape
    columns = range(drafts)
    tokens = torch.cat([window.alternatives[:, column, : to_first - column] for column in columns], dim=1)
    numbers = [tokens.new_full((to_first - column,), column) for column in columns]
    return Alternatives(tokens, torch.cat(numbers))


@dataclass
class Decision:
    """What a step decides, as `DecodeState.commit` takes it. column: [B] int64, the verifying query that the next token
    was drawn from; those after alternatives come after those of the window."""

    drafts: torch.Tensor
    accepted: torch.Tensor
    next_tokens: torch.Tensor
    column: torch.Tensor
    by_alternative: torch.Tensor | None = None


def decide(
    state: DecodeState, window: DraftWindow, alternatives: Alternatives | None, logits: torch.Tensor, verdict: Verdict
) -> Decision:
    """The decision by a verdict on the window; writes the token instead of a rejected draft to the state.

    logits: [B, W + 1 + A, V], of the queries of the window and of those after the alternatives.
    """
    accepted, next_tokens = verdict
    if alternatives is None:
        return Decision(window.tokens, accepted, next_tokens, accepted)
    state.write_drafts((state.decoded + accepted)[:, None], next_tokens[:, None])
    matches = (alternatives.columns == accepted[:, None]) & (alternatives.tokens == next_tokens[:, None])  # [B, A]
    matches &= ((accepted < window.size) & (accepted + 1 < state.remaining))[:, None]
    if state.has_open_gaps:
        matches &= next_tokens[:, None] != state.gap_end  # after which rank the text goes on is not known here
    found = matches.any(1)
    if state.sees_values and not found.any():
        return Decision(window.tokens, accepted, next_tokens, accepted, found)
    drafts = window.tokens.shape[1]
    column = drafts + 1 + matches.byte().argmax(1)  # [B]
    after = (state.decoded + accepted + 1)[:, None]
    p = window.sampler.weights(state.transformed(at_column(logits, column)[:, None], after)[:, 0])  # [B, V]
    following = window.sampler.draw_target(p, (accepted + 1).clamp(max=drafts))
    is_replaced = found[:, None] & (state.columns[:drafts] == accepted[:, None])  # [B, W]
    return Decision(
        torch.where(is_replaced, next_tokens[:, None], window.tokens),
        accepted + found,
        torch.where(found, following, next_tokens),
        torch.where(found, column, accepted),
        found,
    )
