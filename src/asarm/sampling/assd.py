"""Any-subset speculative decoding (ASSD), drafted by the model itself, by its draft head, or by an n-gram table.

Guo & Ermon, arXiv 2504.20456, algorithm 1: draft k tokens, evaluate them under the joint in one function evaluation,
verify, and commit those that are accepted.

Shapes: B rows, K drafts in the window, N tokens of a sequence, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from asarm.models.compiled import DecodingModel
from asarm.sampling.config import SamplerConfig
from asarm.sampling.decode_state import DecodeState
from asarm.sampling.drafting import draft_by_head, drafts_by_head, drafts_by_recurrent_head, without_left
from asarm.sampling.result import SampleResult, TraceOption, one_evaluation
from asarm.sampling.verification import DraftWindow
from asarm.sampling.windows import FixedWindow, WindowedDecoding, WindowPolicy
from asarm.tokenization.batch import InfillBatch

NO_TOKEN, NO_PAIR = -1, -2  # instead of a token to the left


def sample_assd(
    model: DecodingModel,
    batch: InfillBatch,
    config: SamplerConfig,
    seeds: Sequence[int],
    trace: TraceOption,
    policy: WindowPolicy | None = None,
    allowed: torch.Tensor | None = None,
) -> SampleResult:
    """Exact when tolerance is 0; NFE <= targets. Arguments as in `asarm.sampling.sample`.

    policy: lengths of windows, at least 1; without one they have config.k drafts.
    """
    policy = policy or FixedWindow(config.k)
    decoding = AssdDecoding(model, batch, config, seeds, trace, policy, allowed)
    # The model's first draft comes from its target distribution: it needs no verification if it is the only one.
    evaluations = one_evaluation if config.draft == "ngram" else lambda size: 1 + (size > 1)
    return decoding.run(step_of(config), policy.max_k, evaluations)


def step_of(config: SamplerConfig) -> Callable[[DecodeState, int], torch.Tensor]:
    """The step that drafts as the config says."""
    return assd_ngram_step if config.draft == "ngram" else assd_step


class AssdDecoding(WindowedDecoding):
    """A state, and the columns that are chosen for its steps."""

    def step(self, step: Callable[..., torch.Tensor], *arguments: Any) -> None:
        """As in `DecodeState`, with the columns of the window: where values can be seen, those that some row needs."""
        columns = min(self.policy.k, self.longest) if self.sees_values else self.policy.k
        super().step(step, columns, *arguments)


def assd_step(state: DecodeState, columns: int) -> torch.Tensor:
    """Draft, verify and commit one window, drafted by the model: an outcome of `DecodeState.commit`."""
    window = _self_draft(state, columns)
    return _verify(state, window, _evaluate_self(state, window))


def assd_ngram_step(state: DecodeState, columns: int) -> torch.Tensor:
    """As `assd_step`, drafted by an n-gram table: one function evaluation."""
    window = _ngram_draft(state, columns)
    ranks = state.next_ranks(window.tokens.shape[1])
    new = state.uncached + ranks.shape[1] - 1
    logits = state.query_logits(state.decoded + window.size - 1, ranks, ranks, new)
    return _verify(state, window, window.sampler.weights(logits))


def _verify(state: DecodeState, window: DraftWindow, p: torch.Tensor) -> torch.Tensor:
    """Verify and commit a window, by what its drafts' target is drawn from, [B, K, V]."""
    accepted, next_tokens = state.verify(window, p)
    return state.commit(window.tokens, window.size, accepted, next_tokens, columns=window.tokens.shape[1])


def _self_draft(state: DecodeState, columns: int) -> DraftWindow:
    """Drafts by the model, for all positions of the window in parallel: one function evaluation.

    The first is drawn from its target distribution, whatever the temperature of drafts. A draft head moves the states
    of the others.
    """
    size = state.remaining.clamp(max=columns)  # [B]
    ranks = state.next_ranks(columns)  # [B, K]
    positions = state.positions.gather(1, ranks)
    sampler = state.token_sampler(positions)
    asked = ranks[:, :1] if _needs_first_query_only(state, columns) else ranks
    contexts = state.decoded[:, None].expand_as(asked)
    states = state.query_states(state.decoded, asked, contexts, state.uncached)  # [B, K or 1, E]
    if drafts_by_head(state):
        p = sampler.weights(state.logits(states[:, :1], ranks[:, :1]))
        first = sampler.draw(p)
        state.write_drafts(ranks[:, :1], first)
        later = states[:, 1:] if asked is ranks else states.expand(-1, columns - 1, -1)  # then not read
        drafts, q = draft_by_head(state, sampler, ranks[:, 1:], later, states[:, :1], first=1)
        q = F.pad(q, (0, p.shape[2] - q.shape[2]), value=sampler.never)
        drafts, q = torch.cat((first, drafts), dim=1), torch.cat((p, q), dim=1)
        return state.draft_window(drafts, size, q, sampler)
    logits = state.draft_logits(states, ranks)  # [B, K, V]
    if state.config.draft_temperature is not None:
        logits[:, :1] = state.logits(states[:, :1], ranks[:, :1])
    q = sampler.weights(logits)
    drafts = sampler.draw(q)
    state.write_drafts(ranks, drafts)
    return state.draft_window(drafts, size, q, sampler)


def _needs_first_query_only(state: DecodeState, columns: int) -> bool:
    """Whether the first of the next ranks is the only one that a draft asks the network for."""
    return drafts_by_recurrent_head(state) and not any(without_left(state, columns - 1))


def _evaluate_self(state: DecodeState, window: DraftWindow) -> torch.Tensor:
    """What the target of the window is drawn from, [B, K, V].

    The first draft is always accepted, and no query sees the last draft yet: the evaluation takes K - 1 tokens and
    K - 1 queries, and none is needed when the first draft is the only one.
    """
    columns = window.tokens.shape[1]
    if columns == 1:
        return window.q
    ranks = state.next_ranks(columns)[:, 1:]
    later = state.query_logits(state.decoded + window.size - 1, ranks, ranks, columns - 1)
    return torch.cat((window.q[:, :1], window.sampler.weights(later)), dim=1)


def _ngram_draft(state: DecodeState, columns: int) -> DraftWindow:
    """Drafts from bigram counts of the row itself, without a function evaluation.

    Each is drawn given the token to its left, decoded or drafted in this window.
    """
    size = state.remaining.clamp(max=columns)  # [B]
    ranks = state.next_ranks(columns)  # [B, K]
    positions = state.positions.gather(1, ranks)
    sampler = state.token_sampler(positions)
    vocab_size, never_drafted = state.model.config.vocab_size, state.model.never_sampled()
    if state.gap_end is not None:  # what precedes it says nothing of where a text ends
        never_drafted.append(slice(state.gap_end, state.gap_end + 1))
    sequence, known = _known_tokens(state)  # [B, N]
    table = BigramTable(sequence, known, vocab_size, never_drafted)
    left = (positions - 1).clamp(min=0)
    is_known = known.gather(1, left) & (positions > 0)
    known_left = torch.where(is_known, sequence.gather(1, left), NO_TOKEN)  # [B, K]
    follows = positions[:, 1:] == positions[:, :-1] + 1  # [B, K - 1], the draft before
    drafts: list[torch.Tensor] = []
    q: list[torch.Tensor] = []
    for column in range(columns):
        token = known_left[:, column]
        if column > 0:
            token = torch.where(follows[:, column - 1], drafts[-1], token)
        q.append(sampler.weights(table.after(token).log()))
        drafts.append(sampler.draw(q[-1][:, None], column)[:, 0])
    tokens = torch.stack(drafts, 1)
    state.write_drafts(ranks, tokens)
    return state.draft_window(tokens, size, torch.stack(q, 1), sampler)


def _known_tokens(state: DecodeState) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequences in order of position [B, N] int64, and which of their tokens are decoded text [B, N] bool."""
    width, length = state.width, state.rng.positions.shape[1]
    positions = state.positions[:, :width]
    sequence = state.tokens.new_zeros(len(state.tokens), length).scatter(1, positions, state.tokens[:, :width])
    decoded = state.columns[:width] < state.decoded[:, None]
    if state.gap_end is not None:
        decoded &= state.tokens[:, :width] != state.gap_end
    return sequence, torch.zeros_like(sequence, dtype=torch.bool).scatter(1, positions, decoded)


class BigramTable:
    """How often each token followed each among the known tokens of B sequences. Made in every step, so that it is
    always up to date."""

    def __init__(
        self, sequence: torch.Tensor, known: torch.Tensor, vocab_size: int, never_sampled: Sequence[slice] = ()
    ):
        """sequence: [B, N] int64. known: [B, N] bool."""
        is_pair = known[:, :-1] & known[:, 1:]
        self.left, self.right = torch.where(is_pair, sequence[:, :-1], NO_PAIR), sequence[:, 1:]  # [B, N - 1]
        self.zeros = sequence.new_zeros(len(sequence), vocab_size, dtype=torch.float32)
        counts = self.zeros.scatter_add(1, sequence, known.float())
        uniform = torch.ones_like(counts)
        for ids in never_sampled:
            uniform[:, ids] = 0.0
        counts = torch.where(counts.sum(1, keepdim=True) > 0, counts, uniform)
        self.unigram = counts / counts.sum(1, keepdim=True)  # [B, V]

    def after(self, left: torch.Tensor) -> torch.Tensor:
        """Distribution [B, V] float32 of the token after `left` [B] int64.

        Where `left` was never followed by anything, or is NO_TOKEN, it is that of the known tokens; where nothing is
        known, it is uniform over all but the ids that are never sampled.
        """
        counts = self.zeros.scatter_add(1, self.right, (self.left == left[:, None]).float())
        total = counts.sum(1, keepdim=True)
        return torch.where(total > 0, counts / total, self.unigram)
