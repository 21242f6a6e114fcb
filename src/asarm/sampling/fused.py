"""Fused speculative decoding: one function evaluation verifies a window of drafts and prepares the next one.

Where the next window begins depends on how many drafts will be accepted, so each evaluation also asks for the window
after every possible number a of them: the ranks after rank n + a, seen from the first n + a ranks. Such a query does
not see the token at rank n + a, which is drawn when the evaluation is done, nor the other drafts of its window; a draft
head, if the model has one, supplies the nearest of these. A recurrent head needs drafting queries only where the rank
before is not the left neighbour; they see the first n ranks, and serve whatever a is. A draft depends on nothing but
tokens that are decided or drafted before it, so verification leaves exactly the target distribution.

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
from asarm.sampling.drafting import draft_by_head, drafts_by_head, drafts_by_recurrent_head, without_left
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
    """What the next window is drafted from.

    size: [B] int64, its drafts. states: [B, at least W, E], of their queries; those past a row's size are ignored.
    previous: [B, 1, E], the state that the token before the window was drawn from.
    """

    size: torch.Tensor
    states: torch.Tensor
    previous: torch.Tensor


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
    return DraftStates(torch.zeros_like(state.decoded), torch.empty(0), torch.empty(0))


def fused_step(state: DecodeState, draft_states: DraftStates, policy: WindowPolicy) -> DraftStates:
    """One iteration: draft, evaluate, verify, commit. Returns the states from which the next window is drafted."""
    window = _draft(state, draft_states)
    columns = window.tokens.shape[1]  # K
    queries = _drafting_queries(state, columns, policy.k)
    states = _evaluate(state, window.size, columns, queries)  # [B, K + Q, E]
    log_p = state.log_probs(states[:, :columns], state.next_ranks(columns))  # [B, K, V]
    accepted, next_tokens = state.verify(window, log_p)  # [B] each
    policy.update(window.size, accepted)
    new = _select(states, columns, queries, accepted)
    total = state.total
    kept = state.commit(window.tokens, window.size, accepted, next_tokens)  # [B'], rows that are left
    # Where a gap has ended early, what was prepared for the ranks after it is for none that are left.
    size = new.size[kept].minimum(state.remaining).masked_fill(state.total < total[kept], 0)
    return DraftStates(size, new.states[kept], new.previous[kept])


def _draft(state: DecodeState, draft_states: DraftStates) -> DraftWindow:
    """Draw the drafts of the window, and write them to the state. The last of its K columns never has a draft."""
    size = draft_states.size
    width = int(size.max())
    ranks = state.next_ranks(width + 1)  # [B, K]
    positions = state.positions.gather(1, ranks)
    sampler = state.token_sampler(positions)
    tokens = torch.zeros_like(ranks)
    log_q = torch.full((*ranks.shape, state.model.config.vocab_size), float("-inf"), device=ranks.device)
    if width > 0:
        drafts = slice(width)
        states = draft_states.states[:, drafts]
        if drafts_by_head(state):
            tokens[:, drafts], log_q[:, drafts] = draft_by_head(
                state, sampler, ranks[:, drafts], states, draft_states.previous
            )
        else:
            log_q[:, drafts] = state.draft_log_probs(states, ranks[:, drafts])
            tokens[:, drafts] = sampler.draw(log_q[:, drafts], drafts)
            state.write_drafts(ranks[:, drafts], tokens[:, drafts])
    window = state.draft_window(tokens, size, log_q, positions, sampler)
    log_q.masked_fill_(~window.has_draft()[..., None], float("-inf"))  # in rows with fewer drafts
    return window


@dataclass
class DraftingQueries:
    """The queries of one evaluation that prepare the next window, for each number a = 0 .. W of accepted drafts.

    ranks, contexts: Q each, beyond the decided ranks n. sizes[a]: how many drafts the window after a accepted ones has
    at most. starts[a]: where its queries begin in `indices`, which has their numbers; where a draft needs none, any.
    """

    ranks: list[int]
    contexts: list[int]
    sizes: list[int]
    starts: list[int]
    indices: list[int]


def _drafting_queries(state: DecodeState, columns: int, k: int) -> DraftingQueries:
    """Queries for windows of k drafts, or fewer where even the longest row has fewer ranks left after the a accepted
    drafts and the token after those."""
    remaining = int(state.remaining.max())
    sizes = [max(0, min(k, remaining - 1 - accepted)) for accepted in range(columns)]
    if drafts_by_recurrent_head(state):
        most = max(accepted + size for accepted, size in enumerate(sizes))
        is_asked = without_left(state, most)
        ranks = [index + 1 for index in range(most) if is_asked[index]]
        indices = [max(0, count - 1) for count in accumulate(map(int, is_asked))]
        return DraftingQueries(ranks, [0] * len(ranks), sizes, list(range(columns)), indices)
    ranks = [accepted + 1 + index for accepted, size in enumerate(sizes) for index in range(size)]
    contexts = [accepted for accepted, size in enumerate(sizes) for _ in range(size)]
    return DraftingQueries(ranks, contexts, sizes, [0, *accumulate(sizes)][:-1], list(range(len(ranks))))


def _evaluate(state: DecodeState, size: torch.Tensor, columns: int, queries: DraftingQueries) -> torch.Tensor:
    """The function evaluation of an iteration: final states [B, K + Q, E].

    The first K verify the columns of the window. Then come the drafting queries.
    """
    verifying = list(range(columns))
    offsets = torch.tensor([verifying + queries.ranks, verifying + queries.contexts], device=size.device)
    rank, context = state.decoded[:, None] + offsets[:, None]  # [B, K + Q] each
    return state.query_states(state.decoded + size, rank, context)


def _select(states: torch.Tensor, columns: int, queries: DraftingQueries, accepted: torch.Tensor) -> DraftStates:
    """Of the states [B, K + Q, E] of an evaluation those that the actual outcome needs: accepted [B] drafts."""
    size, start = torch.tensor([queries.sizes, queries.starts], device=accepted.device)[:, accepted]  # [B] each
    index = start[:, None] + torch.arange(int(size.max()), device=size.device)  # [B, W']
    indices = torch.tensor(queries.indices, dtype=torch.long, device=size.device)
    indices = columns + indices[index.clamp(max=max(0, len(indices) - 1))]
    index = torch.cat((accepted[:, None], indices), dim=1).clamp(max=states.shape[1] - 1)
    found = states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
    return DraftStates(size, found[:, 1:], found[:, :1])
