"""Fused speculative decoding: one function evaluation verifies a window of drafts and prepares the next one.

Where the next window begins depends on how many drafts will be accepted, so each evaluation also asks for the window
after every possible number a of them: the ranks after rank n + a, seen from the first n + a ranks. Such a query does
not see the token at rank n + a, which is drawn when the evaluation is done, nor the other drafts of its window; a draft
head, if the model has one, supplies the nearest of these. A draft depends on nothing but tokens that are decided or
drafted before it, so verification leaves exactly the target distribution.

Shapes: B rows, W drafts in the window, K = W + 1 verified columns (the drafts and the rank after them), Q drafting
queries, E width of states, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch

from asarm.models.compiled import DecodingModel
from asarm.sampling.config import SamplerConfig
from asarm.sampling.decode_state import DecodeState
from asarm.sampling.result import SampleResult
from asarm.sampling.verification import DraftWindow
from asarm.tokenization.batch import InfillBatch


class WindowPolicy(Protocol):
    """How many tokens to draft. max_k: the longest window. k: drafts of the windows that the next evaluation prepares.

    k may depend on decided tokens, costs and the outcomes of earlier verifications, not on drafts yet to be verified.
    """

    max_k: int
    k: int

    def update(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        """Record an iteration: of size [B] drafts the first accepted [B] were accepted."""


class FixedWindow:
    """Always k drafts."""

    def __init__(self, k: int):
        self.max_k = self.k = k

    def update(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        """No change."""


@dataclass
class DraftStates:
    """What the next window is drafted from: size [B] int64, its drafts, and states [B, at least W, E] of their queries.

    States past a row's size are ignored.
    """

    size: torch.Tensor
    states: torch.Tensor


def sample_fused(
    model: DecodingModel,
    batch: InfillBatch,
    config: SamplerConfig,
    seeds: Sequence[int],
    trace: bool,
    policy: WindowPolicy | None = None,
) -> SampleResult:
    """Exact when tolerance is 0; NFE <= targets. Arguments as in `asarm.sampling.sample`.

    policy: lengths of windows; without one they have config.k drafts.
    """
    policy = policy or FixedWindow(config.k)
    state = fused_state(model, batch, config, seeds, trace, policy.max_k)
    draft_states = no_drafts(state)
    while state.unfinished:
        draft_states = fused_step(state, draft_states, policy)
    return state.result


def fused_state(
    model: DecodingModel, batch: InfillBatch, config: SamplerConfig, seeds: Sequence[int], trace: bool, max_k: int
) -> DecodeState:
    """The state before the first `fused_step`, for windows of at most max_k drafts."""
    return DecodeState(model, batch, config, seeds, trace, window=max_k, lookahead=2 * max_k + 1)


def no_drafts(state: DecodeState) -> DraftStates:
    """Before the first function evaluation there is nothing to draft from."""
    return DraftStates(torch.zeros_like(state.decoded), torch.empty(0))


def fused_step(state: DecodeState, draft_states: DraftStates, policy: WindowPolicy) -> DraftStates:
    """One iteration: draft, evaluate, verify, commit. Returns the states from which the next window is drafted."""
    window = _draft(state, draft_states)
    columns = window.tokens.shape[1]  # K
    next_sizes = _next_sizes(state, columns, policy.k)
    states = _evaluate(state, window.size, next_sizes)  # [B, K + Q, E]
    log_p = state.log_probs(states[:, :columns], state.next_ranks(columns))  # [B, K, V]
    accepted, next_tokens = state.verify(window, log_p)  # [B] each
    policy.update(window.size, accepted)
    next_states = _select(states[:, columns:], next_sizes, accepted)
    total = state.total
    kept = state.commit(window.tokens, window.size, accepted, next_tokens)  # [B'], rows that are left
    # Where a gap has ended early, what was prepared for the ranks after it is for none that are left.
    size = next_states.size[kept].minimum(state.remaining).masked_fill(state.total < total[kept], 0)
    return DraftStates(size, next_states.states[kept])


def _draft(state: DecodeState, draft_states: DraftStates) -> DraftWindow:
    """Draw the drafts of the window, and write them to the state. The last of its K columns never has a draft."""
    size = draft_states.size
    width = int(size.max())
    ranks = state.next_ranks(width + 1)  # [B, K]
    positions = state.positions.gather(1, ranks)
    sampler = state.token_sampler(positions)
    tokens = torch.zeros_like(ranks)
    log_q = torch.full((*ranks.shape, state.model.config.vocab_size), float("-inf"), device=ranks.device)
    use_head = state.config.draft == "self" and state.model.draft_head is not None
    step = 1 if use_head else max(width, 1)  # with a head one by one, each given the one before
    for first in range(0, width, step):
        columns = slice(first, first + step)
        states = draft_states.states[:, columns]
        if use_head:
            states = _follow(state, states, ranks[:, columns])
        log_q[:, columns] = state.draft_log_probs(states, ranks[:, columns])
        tokens[:, columns] = sampler.draw(log_q[:, columns], columns)
        state.write_drafts(ranks[:, columns], tokens[:, columns])
    window = state.draft_window(tokens, size, log_q, positions, sampler)
    log_q.masked_fill_(~window.has_draft()[..., None], float("-inf"))  # in rows with fewer drafts
    return window


def _follow(state: DecodeState, states: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Draft states [B, 1, E] for ranks [B, 1], moved by the draft head where the rank before is the left neighbour."""
    before = ranks - 1
    adjacent = state.positions.gather(1, before) + 1 == state.positions.gather(1, ranks)  # [B, 1]
    moved = state.model.follow(states, state.tokens.gather(1, before))
    return torch.where(adjacent[..., None], moved, states)


def _next_sizes(state: DecodeState, columns: int, k: int) -> list[int]:
    """For each number a = 0 .. W of accepted drafts: how many drafts the window after them has at most.

    It is k, or fewer where even the longest row has fewer ranks left after the a drafts and the token after those.
    """
    remaining = int(state.remaining.max())
    return [max(0, min(k, remaining - 1 - accepted)) for accepted in range(columns)]


def _evaluate(state: DecodeState, size: torch.Tensor, next_sizes: list[int]) -> torch.Tensor:
    """The function evaluation of an iteration: final states [B, K + Q, E].

    The first K verify the columns of the window. Then come, for each number a of accepted drafts, queries for the
    next_sizes[a] ranks after the a-th column, which do not see its token.
    """
    verifying = list(range(len(next_sizes)))
    ranks = verifying + [a + 1 + index for a, count in enumerate(next_sizes) for index in range(count)]
    contexts = verifying + [a for a, count in enumerate(next_sizes) for _ in range(count)]
    offsets = torch.tensor([ranks, contexts], dtype=torch.long, device=size.device)  # [2, K + Q]
    rank, context = state.decoded[:, None] + offsets[:, None]  # [B, K + Q] each
    return state.query_states(state.decoded + size, rank, context)


def _select(states: torch.Tensor, next_sizes: list[int], accepted: torch.Tensor) -> DraftStates:
    """Of the drafting states [B, Q, E] of all outcomes those of the actual one: accepted [B] drafts."""
    starts = [0, *accumulate(next_sizes)][:-1]  # of each outcome's queries among the Q
    size, start = torch.tensor([next_sizes, starts], device=accepted.device)[:, accepted]  # [B] each
    index = start[:, None] + torch.arange(int(size.max()), device=size.device)  # [B, W']
    index = index.clamp(max=max(0, states.shape[1] - 1))
    return DraftStates(size, states.gather(1, index[..., None].expand(-1, -1, states.shape[-1])))
