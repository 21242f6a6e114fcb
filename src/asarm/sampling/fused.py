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
from typing import Protocol

import numpy as np
import torch

from asarm.models.compiled import DecodingModel
from asarm.sampling.config import SamplerConfig
from asarm.sampling.decode_state import DecodeState
from asarm.sampling.drafting import draft_by_head, drafts_by_head, drafts_by_recurrent_head, without_left
from asarm.sampling.result import SampleResult, TraceOption
from asarm.sampling.verification import DraftWindow
from asarm.tokenization.batch import InfillBatch


class WindowPolicy(Protocol):
    """How many tokens to draft. max_k: the longest window. k: drafts of the windows that the next evaluation prepares.

    k may depend on decided tokens, costs and the outcomes of earlier verifications, not on drafts yet to be verified.
    """

    max_k: int
    k: int

    def update(self, size: np.ndarray, accepted: np.ndarray) -> None:
        """Record a step: of size [B] drafts of the rows the first accepted [B] were accepted, int64."""


class FixedWindow:
    """Always k drafts."""

    def __init__(self, k: int):
        self.max_k = self.k = k

    def update(self, size: np.ndarray, accepted: np.ndarray) -> None:
        """No change."""


class NextWindow:
    """What the next window is drafted from, as one step prepares it for the next.

    size: [B] int64, its drafts in each row. states: [B, max_k, E], of their queries; those past a row's size are
    ignored. previous: [B, 1, E], the state that the token before the window was drawn from.
    """

    def __init__(self, state: DecodeState, max_k: int):
        """Before the first function evaluation there is nothing to draft from."""
        weight, _ = state.model.output_layer()
        dtype = state.model.compute_dtype
        self.size = torch.zeros_like(state.decoded)
        self.states = torch.zeros(len(self.size), max_k, weight.shape[1], dtype=dtype, device=weight.device)
        self.previous = self.states.new_zeros(len(self.size), 1, weight.shape[1])

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop all rows except `rows` [B'] (indices)."""
        self.size, self.states, self.previous = self.size[rows], self.states[rows], self.previous[rows]


@dataclass(frozen=True)
class Shape:
    """The shape of a step: its window has `drafts` drafts at most, and the one that it prepares `prepared`.

    asked: the ranks, from the one after the next on, that a recurrent head needs drafting queries for.
    """

    drafts: int
    prepared: int
    asked: tuple[int, ...]

    @property
    def columns(self) -> int:
        """K."""
        return self.drafts + 1


def sample_fused(
    model: DecodingModel,
    batch: InfillBatch,
    config: SamplerConfig,
    seeds: Sequence[int],
    trace: TraceOption,
    policy: WindowPolicy | None = None,
    allowed: torch.Tensor | None = None,
) -> SampleResult:
    """Exact when tolerance is 0; NFE <= targets. Arguments as in `asarm.sampling.sample`.

    policy: lengths of windows; without one they have config.k drafts.
    """
    decoding = FusedDecoding(model, batch, config, seeds, trace, policy or FixedWindow(config.k), allowed)
    while decoding.state.unfinished:
        for _ in range(decoding.state.steps_before_look(decoding.policy.k + 1)):
            decoding.step()
        decoding.look()
    return decoding.state.result


class FusedDecoding:
    """The loop of steps, and the shapes that it chooses for them."""

    def __init__(
        self,
        model: DecodingModel,
        batch: InfillBatch,
        config: SamplerConfig,
        seeds: Sequence[int],
        trace: TraceOption,
        policy: WindowPolicy,
        allowed: torch.Tensor | None = None,
    ):
        self.policy, longest = policy, policy.max_k
        self.state = DecodeState(model, batch, config, seeds, trace, longest, 2 * longest + 1, allowed)
        self.window = NextWindow(self.state, longest)
        self.state.add_rows(self.window)
        self.prepared = 0  # drafts of the next window

    def step(self) -> None:
        """One step."""
        shape = self.shape()
        self.state.step(fused_step, self.window, shape)
        self.prepared = shape.prepared

    def look(self) -> None:
        """See what came of the steps since the last look, see `DecodeState.look`."""
        for size, accepted in self.state.look():
            self.policy.update(size, accepted)

    def shape(self) -> Shape:
        """The shape of the next step. Where values can be seen nothing is asked for that no row has ranks for."""
        state, drafts, prepared = self.state, self.prepared, self.policy.k
        if state.sees_values:
            drafts, prepared = min(drafts, state.longest), max(0, min(prepared, state.longest - 1))
        if not drafts_by_recurrent_head(state):
            return Shape(drafts, prepared, ())
        apart = without_left(state, drafts + prepared if prepared else 0)
        return Shape(drafts, prepared, tuple(index for index, is_apart in enumerate(apart) if is_apart))


def fused_step(state: DecodeState, window: NextWindow, shape: Shape) -> torch.Tensor:
    """Draft, verify and commit a window, and prepare the next one: an outcome of `DecodeState.commit`."""
    ranks = state.next_ranks(shape.columns)  # [B, K]
    drafted = _draft(state, window, shape, ranks)
    states = _evaluate(state, drafted.size, shape, ranks)  # [B, K + Q, E]
    log_p = state.log_probs(states[:, : shape.columns], ranks)  # [B, K, V]
    accepted, next_tokens = state.verify(drafted, log_p)  # [B] each
    _prepare(state, window, shape, states, accepted)
    outcome = state.commit(drafted.tokens, drafted.size, accepted, next_tokens, shape.columns)
    window.size.copy_(outcome[2].clamp(max=shape.prepared))
    if state.has_open_gaps:  # what was prepared for the ranks after the end of a gap is for none that are left
        window.size.masked_fill_(outcome[3] > 0, 0)
    return outcome


def _draft(state: DecodeState, window: NextWindow, shape: Shape, ranks: torch.Tensor) -> DraftWindow:
    """Draw the drafts of the window, ranks [B, K], and write them to the state. The last column never has a draft."""
    positions = state.positions.gather(1, ranks)
    sampler = state.token_sampler(positions)
    ranks = ranks[:, : shape.drafts]
    states = window.states[:, : shape.drafts]
    if drafts_by_head(state):
        tokens, log_q = draft_by_head(state, sampler, ranks, states, window.previous)
    else:
        log_q = state.draft_log_probs(states, ranks)
        tokens = sampler.draw(log_q, slice(shape.drafts))
        state.write_drafts(ranks, tokens)
    return state.draft_window(tokens, window.size, log_q, positions, sampler)


def _evaluate(state: DecodeState, size: torch.Tensor, shape: Shape, verifying: torch.Tensor) -> torch.Tensor:
    """The function evaluation of a step: final states [B, K + Q, E].

    The first K verify the columns of the window, ranks [B, K]. Then come the drafting queries: for each number a of
    accepted drafts those of the window after it; of a recurrent head those of `asked`, which serve all a.
    """
    ranks = contexts = verifying
    if drafts_by_recurrent_head(state):
        if shape.asked:
            ranks = torch.cat((ranks, *(state.decoded[:, None] + 1 + index for index in shape.asked)), dim=1)
            contexts = torch.cat((contexts, verifying[:, :1].expand(-1, len(shape.asked))), dim=1)
    elif shape.prepared:
        after = verifying[:, :, None].expand(-1, -1, shape.prepared)  # [B, K, prepared], contexts
        ranks = torch.cat((ranks, (after + state.columns[1 : shape.prepared + 1]).flatten(1)), dim=1)
        contexts = torch.cat((contexts, after.flatten(1)), dim=1)
    return state.query_states(state.decoded + size, ranks, contexts, state.uncached + shape.drafts)


def _prepare(
    state: DecodeState, window: NextWindow, shape: Shape, states: torch.Tensor, accepted: torch.Tensor
) -> None:
    """Keep of the states [B, K + Q, E] of an evaluation those that the actual outcome needs: accepted [B] drafts."""
    rows = torch.arange(len(accepted), device=accepted.device)
    if drafts_by_head(state):
        window.previous.copy_(states[rows, accepted][:, None])
    if shape.prepared == 0:
        return
    queries = state.columns[shape.columns : shape.columns + shape.prepared]
    if not drafts_by_recurrent_head(state):
        index = accepted[:, None] * shape.prepared + queries  # [B, prepared]
    elif len(shape.asked) == shape.drafts + shape.prepared:
        index = accepted[:, None] + queries
    elif shape.asked:
        index = accepted[:, None] + state.columns[: shape.prepared]
        asked = torch.tensor(shape.asked)
        # Ranks that are not asked for need no query: any state will do.
        index = shape.columns + torch.searchsorted(asked, index).clamp(max=len(asked) - 1)
    else:
        return
    window.states[:, : shape.prepared] = states[rows[:, None], index]
