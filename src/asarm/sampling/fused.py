"""One-pass any-subset speculative decoding: one function evaluation verifies a window and drafts the next one.

Which window comes next depends on how many drafts will be accepted, so the call asks for the next window of each such
number a (or of the likely ones): the ranks behind rank n + a, seen from n + a ranks. Their laws lack the token at
rank n + a only, which is drawn when the call is back, and of each other; a draft head, if the model has one, makes up
for the nearest of these. A draft's law depends on nothing but tokens that are settled, or drafted before it, so
accepting or replacing it returns a token with exactly the target law.

Shapes: B rows, W drafts in the window, Q drafting queries, E width of states, V vocabulary.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F

from asarm.sampling.decode_state import DecodeState
from asarm.sampling.result import SampleResult
from asarm.sampling.verification import VERIFICATION_RULES, Window


class Plan(Protocol):
    """How far to draft. most: the longest window. k: of the drafts that the next call makes.

    k may depend on what is settled, on costs and on the drafts judged so far, not on drafts yet to be judged.
    """

    most: int
    k: int

    def learn(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        """Hear that so many [B] of the first size [B] drafts were accepted."""


class FixedPlan:
    """Always k drafts, whatever is accepted."""

    def __init__(self, k: int):
        self.most = self.k = k

    def learn(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        pass


def sample_fused(model, tokens, given, target, config, seeds, trace, plan: Plan | None = None) -> SampleResult:
    """Exact when tolerance is 0; NFE <= targets. Arguments as in `asarm.sampling.sample`; without a plan windows have
    config.k drafts."""
    plan = plan or FixedPlan(config.k)
    state = start(plan, model, tokens, given, target, config, seeds, trace)
    for _ in steps(state, plan, config):
        pass
    return state.result


def start(plan: Plan, model, tokens, given, target, config, seeds, trace) -> DecodeState:
    """A batch about to be decoded in `steps`."""
    return DecodeState(model, tokens, given, target, config, seeds, plan.most, trace, ahead=2 * plan.most + 1)


def steps(state: DecodeState, plan: Plan, config) -> Iterator[None]:
    """Decode, one function evaluation after the other."""
    size = torch.zeros_like(state.decoded)  # [B], drafts of the next window; before the first call there are none
    drafting = None  # [B, W, E], their states
    while state.unfinished:
        left = state.total - state.decoded  # [B]
        width = int(size.max())
        ranks = state.next_ranks(width + 1)  # [B, W + 1], the window and the rank behind it
        positions = state.positions.gather(1, ranks)
        choice = state.choice(positions)
        log_q, drafts = _draft(state, drafting, size, ranks, choice)

        most = int(left.max()) - 1  # ranks left to draft for behind the next token
        depths = [max(0, min(plan.k, most - a)) for a in range(width + 1)]
        states = _evaluate(state, ranks, size, depths)
        window = Window(state.laws(states[:, : width + 1]), log_q, drafts, size, positions, choice)
        accepted, following = VERIFICATION_RULES[config.coupling](window, state.noise, config.tolerance)
        plan.learn(size, accepted)
        one = torch.ones_like(size)
        going = state.settle_window(drafts[:, :width], size, accepted, following, accepted < left, one)

        size, drafting = _of_outcome(states[:, width + 1 :], depths, accepted)
        size, drafting = size[going].minimum(state.total - state.decoded), drafting[going]
        yield


def _draft(state: DecodeState, drafting, size, ranks, choice) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw and place a row's size [B] drafts for ranks [B, W + 1], by their states drafting [B, at least W, E].

    Returns log-laws [B, W + 1, V] and drafts [B, W + 1]. Where there is no draft (size, or the last rank) the draft is
    void and its law -inf, so that what replaces it has the target law.
    """
    width = ranks.shape[1] - 1
    if width == 0:
        none = torch.full((len(size), 1, state.model.config.vocab_size), float("-inf"), device=size.device)
        return none, torch.zeros_like(ranks)
    step = 1 if state.head else width  # with a head one by one: each is given the one before
    places = [slice(first, first + step) for first in range(0, width, step)]
    log_q = []
    for at in places:
        states = drafting[:, at]
        if state.head:
            states = _followed(state, states, ranks[:, at])
        log_q.append(state.laws(states))
        state.place(ranks[:, at], choice.tokens(log_q[-1], at))
    void = torch.arange(width + 1, device=size.device) >= size[:, None]
    log_q = F.pad(torch.cat(log_q, dim=1), (0, 0, 0, 1)).masked_fill(void[..., None], float("-inf"))
    return log_q, state.tokens.gather(1, ranks)


def _followed(state: DecodeState, states: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """States [B, 1, E] that draft for ranks [B, 1], given the token before, if it is the neighbour on the left."""
    before = ranks - 1
    adjacent = state.positions.gather(1, before) + 1 == state.positions.gather(1, ranks)  # [B, 1]
    followed = state.model.follow(states, state.tokens.gather(1, before))
    return torch.where(adjacent[..., None], followed, states)


def _evaluate(state: DecodeState, ranks, size, depths: list[int]) -> torch.Tensor:
    """States that verify the tokens at ranks [B, W + 1], and then, for each a of 0..W, states that draft for the
    depths[a] ranks behind the a-th of them, blind to its token: [B, W + 1 + Q, E]."""
    seen = [a for a, depth in enumerate(depths) for _ in range(depth)]
    behind = [a + 1 + index for a, depth in enumerate(depths) for index in range(depth)]
    # [Q] each, counted from the first rank
    seen, behind = torch.tensor([seen, behind], dtype=torch.long, device=ranks.device)
    first = state.decoded[:, None]
    asked, contexts = (torch.cat((ranks, first + counted), dim=1) for counted in (behind, seen))
    return state.states(state.decoded + size, asked, contexts)


def _of_outcome(states: torch.Tensor, depths: list[int], accepted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the drafting states [B, Q, E] those for the number [B] of drafts that were accepted: how many [B], and they
    themselves [B, W', E] (what is beyond a row's number is void)."""
    depth = torch.tensor(depths, device=accepted.device)
    size, start = depth[accepted], (depth.cumsum(0) - depth)[accepted]  # [B]
    index = start[:, None] + torch.arange(int(size.max()), device=size.device)  # [B, W']
    index = index.clamp(max=max(0, states.shape[1] - 1))
    return size, states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
