"""`DecodeState`: the tokens of a batch in rank order, how many of them are decided, and the loop of decoding steps.

A step is a function of the state on tensors of fixed shape: it evaluates the network, writes tokens to the state, and
returns its outcome as a tensor, without waiting for a value. The host looks at outcomes after a number of steps, counts
them, and takes finished rows out of the batch; until then they idle. On a CPU, where it need not wait, it looks before
a row can idle, and the next window is as narrow as the longest row allows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from asarm.models.backbone import AnyOrderModel
from asarm.models.compiled import CompiledModel, DecodingModel, rounded
from asarm.models.kv_cache import read_equal_prompts_once
from asarm.models.rank_order import rank_order
from asarm.sampling.config import SamplerConfig
from asarm.sampling.counter_rng import GumbelSampler, InverseCDFSampler, TabledRNG, TokenSampler
from asarm.sampling.result import Evaluations, SampleResult, TraceOption, new_result, one_evaluation, record_steps
from asarm.sampling.verification import VERIFICATION_RULES, DraftWindow, Verdict
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.open_gaps import exclude_gap_end, gap_sizes_from, open_targets, take_out
from asarm.tokenization.transforms import AllowedTokens

# Steps from one look to the next on devices where looking makes the host wait.
FEWEST_STEPS, MOST_STEPS = 4, 32


class DecodeState:
    """The rows of a batch that are being decoded (B shrinks as rows are finished), and the results of all of them.

    tokens, positions: [B, R] int64 in rank order; ranks past a row's end, and from `width` on, are scratch.
    decoded: [B] int64, ranks whose tokens are decided: they are 0 .. decoded - 1. total: [B] int64, ranks of the row.
    zeros: [B] int64, for counts that are 0 in every row.
    uncached: the most decided ranks of a row that the cache lacks: the prompt, then one, two after an alternative.
    sees_values: whether the host reads tensors without waiting for a device.
    may_end: [B, R] bool, ranks of gaps of unknown length (see `asarm.tokenization.open_gaps`). rest: [B, R] int64, how
        many ranks of its gap come after each rank.
    """

    def __init__(
        self,
        model: DecodingModel,
        batch: InfillBatch,
        config: SamplerConfig,
        seeds: Sequence[int],
        trace: TraceOption,
        window: int,
        lookahead: int,
        allowed: torch.Tensor | None = None,
    ):
        """window, lookahead: maxima of drafts verified at once, and of ranks, from the next one on, queried at once.
        allowed: as in `asarm.sampling.sample`."""
        order = rank_order(batch.given, batch.target)
        count, length = batch.tokens.shape
        device = batch.tokens.device
        self.compiler = model if isinstance(model, CompiledModel) else None
        self.model: AnyOrderModel = model.model if isinstance(model, CompiledModel) else model
        self.config = config
        self.sees_values = device.type == "cpu" and self.compiler is None
        self.total, self.decoded = order.length, order.prompt_length.clone()
        self.zeros = torch.zeros_like(self.decoded)
        total, prompt = torch.stack((order.length, order.prompt_length)).cpu().numpy()  # [B] each
        self.width = width = int(total.max())
        self.uncached, self.has_read_prompt = int(prompt.max()), False
        size = width + lookahead if self.compiler is None else rounded(width + lookahead)  # R, see `lookahead`
        scratch = (0, size - width)  # for the ranks past its end that the last rank of a row looks ahead to
        self.positions = F.pad(order.order[:, :width], scratch)
        self.tokens = F.pad(batch.tokens.gather(1, order.order)[:, :width], scratch)
        self.contexts = F.pad(order.content_context()[:, :width], scratch)
        self.columns = torch.arange(size, device=device)
        self.gap_end = self.model.config.gap_end_token_id
        may_end = open_targets(batch, self.gap_end)
        self.has_open_gaps = self.gap_end is not None and bool(may_end.any())
        rest = (gap_sizes_from(batch) - 1).clamp(min=0)
        self.may_end, self.rest = (F.pad(one.gather(1, order.order)[:, :width], scratch) for one in (may_end, rest))
        span = length if self.compiler is None else rounded(length)
        self.rng = TabledRNG(torch.tensor(list(seeds), device=device), span, self.model.config.vocab_size)
        self.cache = self.model.new_cache(count, size, span, static=not self.sees_values)
        parts = (self.tokens[:, : self.uncached], self.positions[:, : self.uncached], self.decoded)
        if read_equal_prompts_once(self.model, self.cache, *parts, span):
            self.uncached = 0
        self.allowed = None if allowed is None else AllowedTokens(allowed)
        self.by_row: list[Any] = []  # what else has rows
        self.rows, self.remaining_seen = np.arange(count), total - prompt  # of the input; when the host last looked
        self.outcomes: list[torch.Tensor] = []  # of the steps since
        tokens = batch.tokens.clone() if self.gap_end is None else batch.tokens.masked_fill(may_end, self.gap_end)
        self.result = new_result(tokens, torch.from_numpy(total - prompt), window, trace)
        if self.compiler is not None:
            self.compiler.start_batch(size)
            self.compiler.adopt(self)
        for part in (self.rng, self.cache, self.allowed):
            if part is not None:
                self.add_rows(part)

    def add_rows(self, part: Any) -> None:
        """Keep a part of the state, which has rows of its own, in step with the batch.

        part: has a method `keep_rows` that drops all rows except some, by their indices [B'].
        """
        self.by_row.append(part)
        if self.compiler is not None:
            self.compiler.adopt(part)

    def run(
        self,
        step: Callable[..., torch.Tensor],
        most: int,
        evaluations: Evaluations = one_evaluation,
    ) -> SampleResult:
        """Repeat a step until all rows are finished.

        step: decides from 1 to `most` tokens of each row that is left; returns what `commit` does.
        evaluations: the network function evaluations of a step, by the numbers of drafts of its rows.
        """
        while self.unfinished:
            for _ in range(self.steps_before_look(most)):
                self.step(step)
            self.look(evaluations)
        return self.result

    def step(self, step: Callable[..., torch.Tensor], *arguments: Any) -> None:
        """One step, see `run`. arguments: what it takes beside the state."""
        if self.compiler is None or not self.has_read_prompt or self.result.trace is not None:
            self.outcomes.append(step(self, *arguments))
        else:
            self.outcomes.append(self.compiler.run(step, self, *arguments))
        self.uncached, self.has_read_prompt = 1, True

    @property
    def unfinished(self) -> bool:
        """Whether any row is left."""
        return len(self.rows) > 0

    @property
    def longest(self) -> int:
        """Ranks still to be decoded in the longest row, when the host last looked."""
        return int(self.remaining_seen.max())

    def steps_before_look(self, most: int) -> int:
        """How many steps to make before looking whether rows are finished: as many as the longest row needs at least,
        but not too few, as each look makes the host wait, nor too many, as gaps may end early. Where it does not wait,
        as many as the shortest row needs. most: tokens that a step decides."""
        if self.result.trace is not None or (self.sees_values and self.has_open_gaps):
            return 1
        if self.sees_values:
            return max(1, min(int(self.remaining_seen.min()) // most, FEWEST_STEPS))
        return max(FEWEST_STEPS, min(-(-self.longest // most), MOST_STEPS))

    @property
    def remaining(self) -> torch.Tensor:
        """Ranks still to be decoded: [B] int64."""
        return self.total - self.decoded

    def next_ranks(self, count: int) -> torch.Tensor:
        """The next `count` ranks of each row, even past its end: [B, count] int64."""
        return self.decoded[:, None] + self.columns[:count]

    def query_states(
        self,
        content_length: torch.Tensor,
        ranks: torch.Tensor,
        contexts: torch.Tensor,
        count: int,
        alternatives: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """One function evaluation: final states [B, Q, E] of queries for `ranks` that see `contexts` ranks.

        content_length: [B] int64; tokens of the ranks before it, drafts included, enter the cache: at most `count` new
        ones in a row. ranks, contexts: [B, Q] int64. alternatives: other tokens [B, A] instead of drafts, and their
            ranks [B, A]; the states of queries for the ranks after them, which see them instead, come last:
            [B, Q + A, E].
        """
        # Ranks beyond content_length are scratch.
        new_ranks = self.cache.lengths[:, None] + self.columns[:count]  # [B, C]
        tokens, seen = self.tokens.gather(1, new_ranks), self.contexts.gather(1, new_ranks)
        contexts, beside = contexts.minimum(content_length[:, None]), None
        if alternatives is not None:  # in the cache, after all others, for this function evaluation only
            other_tokens, others = alternatives
            slots = self.cache.lengths[:, None] + count + self.columns[: others.shape[1]]
            none, no_query = (torch.full_like(rows, -1) for rows in (new_ranks, ranks))
            beside = torch.cat((none, slots, no_query, slots), dim=1)
            tokens, seen = torch.cat((tokens, other_tokens), dim=1), torch.cat((seen, others), dim=1)
            new_ranks, ranks = torch.cat((new_ranks, others), dim=1), torch.cat((ranks, others + 1), dim=1)
            contexts = torch.cat((contexts, others), dim=1)
        positions, asked = self.positions.gather(1, new_ranks), self.positions.gather(1, ranks)
        states = self.model.hidden(tokens, positions, seen, asked, contexts, self.cache, beside)
        self.cache.set_lengths(content_length)
        return states

    def logits(self, states: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
        """Logits (float32) of the tokens at ranks [B, Q], as the config transforms them, by the final states of their
        queries: [B, Q, E] -> [B, Q, V]."""
        return self.transformed(self.model.logits(states), ranks)

    def transformed(self, logits: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
        """As `logits`, from those of the model [B, Q, V]."""
        return self._transformed(logits, ranks, self.config.temperature, ranks)

    def draft_logits(self, states: torch.Tensor, ranks: torch.Tensor, by_head: bool = False) -> torch.Tensor:
        """As `logits`, of what tokens are drafted from. by_head: the states are those of the draft head; the result
        may then be [B, Q, D], of the first D tokens, if it drafts no others."""
        every_id = self.has_open_gaps or self.allowed is not None or self.config.looks_at_ids
        logits = self.model.draft_logits(states, every_id) if by_head else self.model.logits(states)
        temperature = self.config.draft_temperature
        temperature = self.config.temperature if temperature is None else temperature
        known = ranks if by_head else self.decoded[:, None].expand_as(ranks)
        return self._transformed(logits, ranks, temperature, known)

    def _transformed(
        self, logits: torch.Tensor, ranks: torch.Tensor, temperature: float, known: torch.Tensor
    ) -> torch.Tensor:
        """known: [B, Q] int64, how many ranks the transforms of the config take into account."""
        logits = logits.float()
        if self.has_open_gaps:
            exclude_gap_end(logits, self.may_end.gather(1, ranks), self.gap_end)
        elif self.gap_end is not None:
            logits[..., self.gap_end : self.gap_end + 1] = float("-inf")
        # Without what looks at positions they are not needed.
        by_position = self.allowed is not None or self.config.bad_words_ids
        at = self.positions.gather(1, ranks) if by_position else ranks
        allowed = None if self.allowed is None else self.allowed.at(at)
        return self.config.logits(logits, self.tokens, self.positions, at, known, allowed, self.gap_end, temperature)

    def query_logits(
        self, content_length: torch.Tensor, ranks: torch.Tensor, contexts: torch.Tensor, count: int
    ) -> torch.Tensor:
        """One function evaluation: logits [B, Q, V] of the tokens at `ranks`; arguments as in `query_states`."""
        return self.logits(self.query_states(content_length, ranks, contexts, count), ranks)

    def token_sampler(self, positions: torch.Tensor) -> TokenSampler:
        """What drafts for these positions [B, K] must be drawn with, for the verification rule to be exact."""
        kind = GumbelSampler if self.config.coupling == "gumbel" else InverseCDFSampler
        return kind(self.rng, positions, self.model.config.vocab_size)

    def write_drafts(self, ranks: torch.Tensor, tokens: torch.Tensor) -> None:
        """Put tokens [B, K] at ranks [B, K], where later queries see them. Nothing is decided yet."""
        self.tokens.scatter_(1, ranks, tokens)

    def draft_window(
        self, tokens: torch.Tensor, size: torch.Tensor, q: torch.Tensor, sampler: TokenSampler
    ) -> DraftWindow:
        """The window of drafts for the next ranks. A draft that ends a gap before its last rank is the last of its row:
        the rest of the gap is not there to be verified."""
        if self.has_open_gaps:
            ranks = self.next_ranks(tokens.shape[1])  # [B, K]
            ends = ((tokens == self.gap_end) & self.may_end.gather(1, ranks) & (self.rest.gather(1, ranks) > 0)).long()
            size = size.minimum((ends.cumsum(1) - ends == 0).sum(1))
        return DraftWindow(tokens, size, q, sampler)

    def verify(self, window: DraftWindow, p: torch.Tensor) -> Verdict:
        """Apply the verification rule of the config, see `asarm.sampling.verification`: accepted and next tokens."""
        rule = VERIFICATION_RULES[self.config.coupling]
        verdict = rule(window, p, self.config.tolerance)
        if self.config.coupling == "block":  # whose numbers must not be used twice
            self.rng.fold_in()
        return verdict

    def commit(
        self,
        drafts: torch.Tensor,
        size: torch.Tensor,
        accepted: torch.Tensor,
        next_tokens: torch.Tensor,
        columns: int,
        by_alternative: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decide the tokens of one step: accepted drafts, and the next token after them.

        drafts: [B, W] int64, at the next ranks, of which the first size [B] were verified and accepted [B] kept.
        next_tokens: [B] int64; ignored where all verified columns, or all ranks up to the row's end, are decided by
            drafts, and where the last accepted draft ends a gap early.
        by_alternative: [B] bool, whether the last accepted draft is an alternative to the one that was verified.

        The cache keeps the content of accepted drafts; what it may hold after those is of rejected ones. Where the last
        decided token ends a gap, the rest of the gap is taken out of the row.
        Returns the outcome for `look`, [4 or 5, B] int64: sizes, accepted drafts, ranks that remain, by_alternative,
        and, if any row has gaps of unknown length, ranks that were taken out.
        """
        end = self.total if columns > drafts.shape[1] else self.total.minimum(self.decoded + columns)
        kept = self.decoded.add_(accepted)  # [B], now the rank of the next token
        added = kept < end  # [B] bool
        if self.has_open_gaps:
            added &= ~((accepted > 0) & (self._rest_of_ended_gap() > 0))
        self.write_drafts(kept[:, None], next_tokens[:, None])  # where it is not added, the rank is not decided
        alternative = self.zeros if by_alternative is None else by_alternative.long()
        self.cache.lengths.clamp_(max=kept if by_alternative is None else kept - alternative)
        self.decoded.add_(added)
        outcome = [size, accepted, self.total - self.decoded, alternative]
        if self.has_open_gaps:
            rest = self._rest_of_ended_gap()  # [B]
            outcome[2:] = [outcome[2] - rest, alternative, rest]
        if self.result.trace is not None:
            ranked = (self.positions, self.tokens, self.decoded)
            record_steps(self.result.trace, self.rows, ranked, drafts, outcome, added, self.gap_end)
        if self.has_open_gaps and (not self.sees_values or outcome[4].any()):
            take_out(outcome[4], self.decoded, self.width, (self.tokens, self.positions, self.may_end, self.rest))
            self.total -= outcome[4]
        return torch.stack(outcome)

    def _rest_of_ended_gap(self) -> torch.Tensor:
        """How many ranks are left of a gap that the last decoded token has ended: [B] int64."""
        last = (self.decoded - 1).clamp(min=0)[:, None]
        ended = (self.tokens.gather(1, last) == self.gap_end) & self.may_end.gather(1, last)
        ended &= self.remaining[:, None] > 0  # of a row that is finished nothing is left
        return torch.where(ended, self.rest.gather(1, last), 0)[:, 0]

    def look(self, evaluations: Evaluations = one_evaluation) -> list[tuple[np.ndarray, np.ndarray]]:
        """Read the outcomes of the steps since the last look, count, and take finished rows out of the batch.

        Returns, for each step, drafts up to the first rejection and accepted drafts [B'] of the rows that were not
        finished before it.
        """
        steps = []
        for outcome in torch.stack(self.outcomes).cpu().numpy():
            active = self.remaining_seen > 0
            self.remaining_seen = outcome[2]
            size, kept, _, by_alternative, *rest = outcome[:, active]
            verified = np.where(by_alternative, kept, np.minimum(size, kept + 1))
            self.result.count(self.rows[active], size, verified, kept, evaluations(size), rest[0] if rest else 0)
            steps.append((verified, kept))
        self.outcomes.clear()
        left = self.remaining_seen > 0
        # A batch of another size is another recorded graph on a device; idle rows cost little there.
        if not left.all() and (self.sees_values or 2 * left.sum() <= len(left)):
            self._keep_rows(left)
        return steps

    def _keep_rows(self, left: np.ndarray) -> None:
        """Move the tokens of all rows but those that are left [B] (bool) to the result, and out of the batch."""
        device = self.tokens.device
        done = np.flatnonzero(~left)
        parts = np.concatenate((self.rows[done], done, np.flatnonzero(left)))
        rows, done, kept = torch.from_numpy(parts).to(device).split((len(done), len(done), len(left) - len(done)))
        positions, tokens = (part[done, : self.width] for part in (self.positions, self.tokens))  # [B', R]
        result = self.result.tokens[rows]
        is_decided = self.columns[: self.width] < self.total[done][:, None]
        tokens = torch.where(is_decided, tokens, result.gather(1, positions))
        self.result.tokens[rows] = result.scatter(1, positions, tokens)
        self.rows, self.remaining_seen = self.rows[left], self.remaining_seen[left]
        for name in ("tokens", "positions", "contexts", "may_end", "rest", "total", "decoded", "zeros"):
            setattr(self, name, getattr(self, name)[kept])
        for part in self.by_row:
            part.keep_rows(kept)
        if self.compiler is not None:
            for part in (self, *self.by_row):
                self.compiler.adopt(part)
