"""Fused speculative decoding: one function evaluation verifies a window of drafts and prepares the next one.

Where the next window begins depends on how many drafts will be accepted, so each evaluation also asks for all ranks
that may be in it. These queries see the first n ranks, which are decided, and neither the drafts of this window nor
those of their own; a draft head, if the model has one, supplies the nearest of these. (Queries for each number a of
accepted drafts, which see n + a ranks, are many more, and their drafts are not accepted more often.) A recurrent head
needs drafting queries only where the rank before is not the left neighbour. It also drafts before the first evaluation,
from the given token to the left alone, so that reading the prompt verifies drafts, too. A draft depends on nothing but
tokens that are decided or drafted before it, so verification leaves exactly the target distribution.

Shapes: B rows, W drafts in the window, K = W + 1 verified columns (the drafts and the rank after them), Q drafting
queries, E width of states, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asarm.models.compiled import DecodingModel
from asarm.sampling.config import SamplerConfig
from asarm.sampling.counter_rng import at_column
from asarm.sampling.decode_state import DecodeState
from asarm.sampling.drafting import (
    Alternatives,
    Decision,
    alternatives_to,
    before_first_call,
    count_alternatives,
    decide,
    draft_by_head,
    drafts_by_head,
    drafts_by_recurrent_head,
    without_left,
)
from asarm.sampling.result import SampleResult, TraceOption
from asarm.sampling.verification import DraftWindow
from asarm.sampling.windows import FixedWindow, WindowedDecoding, WindowPolicy
from asarm.tokenization.batch import InfillBatch


class NextWindow:
    """What the next window is drafted from, as one step prepares it for the next.

    size: [B] int64, its drafts in each row. states: [B, max_k, E], of their queries; those past a row's size are
    ignored. previous: [B, 1, E], the state that the token before the window was drawn from.
    """

    def __init__(self, state: DecodeState, max_k: int):
        """Before the first function evaluation there is nothing to draft from, unless the head makes do with less."""
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

    asked: the ranks that have drafting queries, counted from the one after the next on.
    """

    drafts: int
    prepared: int
    asked: tuple[int, ...]

    @property
    def columns(self) -> int:
        """K."""
        return self.drafts + 1

    @property
    def asks_for_some(self) -> bool:
        """Whether some of the next window's possible ranks are asked for and others are not: on a CPU only, where
        values can be seen."""
        return 0 < len(self.asked) < self.drafts + self.prepared


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
    policy = policy or FixedWindow(config.k)
    return FusedDecoding(model, batch, config, seeds, trace, policy, allowed).run(fused_step, policy.max_k + 1)


class FusedDecoding(WindowedDecoding):
    """A state with what the next window is drafted from, and the shapes that are chosen for its steps."""

    def __init__(self, *arguments: Any):
        """arguments: as in `WindowedDecoding`."""
        super().__init__(*arguments)
        self.window = NextWindow(self, self.policy.max_k)
        self.add_rows(self.window)
        self.prepared = 0  # drafts of the next window
        if self.policy.k and drafts_by_recurrent_head(self):
            first, size = before_first_call(self, self.window.previous, self.policy.k)
            self.window.states[:, :1] = first
            self.window.size.copy_(size)
            self.prepared = int(size.max()) if self.sees_values else self.policy.k

    @staticmethod
    def lookahead(longest: int, config: SamplerConfig) -> int:
        """The window after one whose drafts are all accepted ends there; alternatives come after its cached ranks."""
        return 2 * longest + 1 + count_alternatives(config.alternatives, longest)

    def step(self, step: Callable[..., torch.Tensor], *arguments: Any) -> None:
        """As in `DecodeState`, with a shape."""
        shape = self.shape()
        super().step(step, shape, *arguments)
        self.prepared = shape.prepared
        if self.config.alternatives:  # one that was kept is not in the cache either
            self.uncached = 1 + (bool(self.outcomes[-1][3].any()) if self.sees_values else 1)

    def shape(self) -> Shape:
        """The shape of the next step. Where values can be seen nothing is asked for that no row has ranks for."""
        drafts, prepared = self.prepared, self.policy.k
        if self.sees_values:
            drafts, prepared = min(drafts, self.longest), max(0, min(prepared, self.longest - 1))
        count = drafts + prepared if prepared else 0
        needed = without_left(self, count) if drafts_by_recurrent_head(self) else [True] * count
        return Shape(drafts, prepared, tuple(index for index, is_needed in enumerate(needed) if is_needed))


def fused_step(state: FusedDecoding, shape: Shape) -> torch.Tensor:
    """Draft, verify and commit a window, and prepare the next one: an outcome of `DecodeState.commit`."""
    reach = state.next_ranks(shape.columns + shape.prepared)  # the ranks of this window and of any next one
    ranks = reach[:, : shape.columns]  # [B, K]
    drafted = _draft(state, shape, ranks)
    alternatives = alternatives_to(drafted)
    verifying, drafting = _evaluate(state, drafted.size, shape, reach, alternatives)
    logits = state.model.logits(verifying)
    verdict = state.verify(drafted, drafted.sampler.weights(state.transformed(logits[:, : shape.columns], ranks)))
    decision = decide(state, drafted, alternatives, logits, verdict)
    _prepare(state, shape, verifying, drafting, decision)
    outcome = state.commit(
        decision.drafts,
        drafted.size,
        decision.accepted,
        decision.next_tokens,
        shape.columns,
        decision.by_alternative,
    )
    size = state.window.size
    torch.clamp(outcome[2], max=shape.prepared, out=size)
    if state.has_open_gaps:  # what was prepared for the ranks after the end of a gap is for none that are left
        size.masked_fill_(outcome[4] > 0, 0)
    return outcome


def _draft(state: FusedDecoding, shape: Shape, ranks: torch.Tensor) -> DraftWindow:
    """Draw the drafts of the window, ranks [B, K], and write them to the state. The last column never has a draft."""
    sampler = state.token_sampler(state.positions.gather(1, ranks))
    ranks = ranks[:, : shape.drafts]
    states = state.window.states[:, : shape.drafts]
    if drafts_by_head(state):
        tokens, q = draft_by_head(state, sampler, ranks, states, state.window.previous)
    else:
        q = sampler.weights(state.draft_logits(states, ranks))
        tokens = sampler.draw(q)
        state.write_drafts(ranks, tokens)
    window = state.draft_window(tokens, state.window.size, q, sampler)
    count = state.config.alternatives
    if shape.drafts and count:
        window.alternatives = sampler.alternatives(q[:, :count], tokens[:, :count], count)
    return window


def _evaluate(
    state: FusedDecoding, size: torch.Tensor, shape: Shape, reach: torch.Tensor, alternatives: Alternatives | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The function evaluation of a step: final states of the verifying queries [B, K + A, E] and of the drafting ones.

    The former are for the columns of the window, the first K ranks of reach, and for the ranks after the alternatives;
    the latter, [B, Q, E], for those `asked`.
    """
    content_length, count = state.decoded + size, state.uncached + shape.drafts
    ranks, asked = reach[:, : shape.columns], reach[:, 1 : 1 + len(shape.asked)]
    if shape.asks_for_some:
        asked = reach[:, 1:][:, list(shape.asked)]
    contexts = torch.cat((ranks, ranks[:, :1].expand_as(asked)), dim=1)
    others = None if alternatives is None else (alternatives.tokens, alternatives.ranks(state.decoded))
    states = state.query_states(content_length, torch.cat((ranks, asked), dim=1), contexts, count, others)
    verifying, drafting, after = states.tensor_split((shape.columns, contexts.shape[1]), dim=1)
    return verifying if others is None else torch.cat((verifying, after), dim=1), drafting


def _prepare(
    state: FusedDecoding, shape: Shape, verifying: torch.Tensor, drafting: torch.Tensor, decision: Decision
) -> None:
    """Keep of the states that `_evaluate` returned those that the actual outcome needs."""
    window, accepted = state.window, decision.accepted
    if drafts_by_head(state):
        window.previous.copy_(at_column(verifying, decision.column)[:, None])
    if not shape.asked:
        return
    if shape.asks_for_some:  # ranks that are not asked for need no query: any state will do
        index = accepted[:, None] + state.columns[: shape.prepared]
        index = torch.searchsorted(torch.tensor(shape.asked), index).clamp(max=len(shape.asked) - 1)
        states = drafting.gather(1, index[..., None].expand(-1, -1, drafting.shape[2]))
    else:
        states = at_column(drafting.unfold(1, shape.prepared, 1), accepted).transpose(1, 2)
    window.states[:, : shape.prepared] = states
