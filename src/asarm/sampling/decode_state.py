"""`DecodeState`: the tokens of a batch in rank order, how many of them are decided, and the key/value cache."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F

from asarm.models.backbone import AnyOrderModel
from asarm.models.compiled import DecodingModel
from asarm.models.rank_order import rank_order
from asarm.sampling.config import SamplerConfig
from asarm.sampling.counter_rng import TOKEN, CounterRNG, GumbelSampler, InverseCDFSampler, TokenSampler
from asarm.sampling.result import SampleResult, TraceStep
from asarm.sampling.verification import VERIFICATION_RULES, DraftWindow, Verdict
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.open_gaps import exclude_gap_end, gap_sizes_from, open_targets


class DecodeState:
    """The unfinished rows of a batch (B shrinks as rows are finished), and the results of all of them.

    tokens, positions: [B, R] int64 in rank order; ranks past a row's end, and from `width` on, are scratch.
    decoded: [B] int64, ranks whose tokens are decided: they are 0 .. decoded - 1. total: [B] int64, ranks of the row.
    rows: [B] int64, index of each row in the input.
    may_end: [B, R] bool, ranks of gaps of unknown length (see `asarm.tokenization.open_gaps`). rest: [B, R] int64, how
        many ranks of its gap come after each rank.
    """

    def __init__(
        self,
        model: DecodingModel,
        batch: InfillBatch,
        config: SamplerConfig,
        seeds: Sequence[int],
        trace: bool,
        window: int,
        lookahead: int,
    ):
        """window, lookahead: maxima of drafts verified at once, and of ranks, from the next one on, queried at once."""
        order = rank_order(batch.given, batch.target)
        count, length = batch.tokens.shape
        self.model, self.config = cast(AnyOrderModel, model), config  # a compiled one has the same methods
        self.total, self.decoded = order.length, order.prompt_length.clone()
        self.width = width = int(self.total.max())
        scratch = (0, lookahead)  # for the ranks past its end that the last rank of a row looks ahead to
        self.positions = F.pad(order.order[:, :width], scratch)
        self.tokens = F.pad(batch.tokens.gather(1, order.order)[:, :width], scratch)
        self.contexts = F.pad(order.content_context()[:, :width], scratch)
        self.gap_end = self.model.config.gap_end_token_id
        may_end = open_targets(batch, self.gap_end)
        rest = (gap_sizes_from(batch) - 1).clamp(min=0)
        self.may_end, self.rest = (F.pad(one.gather(1, order.order)[:, :width], scratch) for one in (may_end, rest))
        self.rows = torch.arange(count, device=batch.tokens.device)
        self.rng = CounterRNG.from_seeds(seeds, batch.tokens.device)
        self.cache = self.model.new_cache(count, width, length)
        self.window = window
        self.result = SampleResult(
            tokens=batch.tokens.clone() if self.gap_end is None else batch.tokens.masked_fill(may_end, self.gap_end),
            nfe=torch.zeros(count, dtype=torch.long),
            targets=batch.target.sum(1).cpu(),
            proposed=torch.zeros(count, window, dtype=torch.long),
            accepted=torch.zeros(count, window, dtype=torch.long),
            seconds=0.0,
            trace=[[] for _ in seeds] if trace else None,
        )

    @property
    def unfinished(self) -> bool:
        """Whether any row is left."""
        return len(self.rows) > 0

    @property
    def remaining(self) -> torch.Tensor:
        """Ranks still to be decoded: [B] int64."""
        return self.total - self.decoded

    def next_ranks(self, count: int) -> torch.Tensor:
        """The next `count` ranks of each row, even past its end: [B, count] int64."""
        return self.decoded[:, None] + torch.arange(count, device=self.rows.device)

    def query_states(self, content_length: torch.Tensor, ranks: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """One function evaluation: final states [B, Q, E] of queries for `ranks` that see `contexts` ranks.

        content_length: [B] int64; tokens of the ranks before it, drafts included, enter the cache.
        ranks, contexts: [B, Q] int64.
        """
        start = self.cache.lengths
        new_ranks = start[:, None] + torch.arange(int((content_length - start).max()), device=start.device)  # [B, C]
        states = self.model.hidden(
            self.tokens.gather(1, new_ranks),
            self.positions.gather(1, new_ranks),
            self.contexts.gather(1, new_ranks).minimum(content_length[:, None]),
            self.positions.gather(1, ranks),
            contexts.minimum(content_length[:, None]),
            self.cache,
        )
        self.cache.set_lengths(content_length)
        return states

    def log_probs(self, states: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
        """Log-probs (float32) of the tokens at ranks [B, Q], by the final states of their queries: [B, Q, E] ->
        [B, Q, V]."""
        return self._log_softmax(self.model.logits(states), ranks, self.config.temperature)

    def draft_log_probs(self, states: torch.Tensor, ranks: torch.Tensor, by_head: bool = False) -> torch.Tensor:
        """As `log_probs`, of what tokens are drafted from. by_head: the states are those of the draft head."""
        logits = self.model.draft_logits(states) if by_head else self.model.logits(states)
        return self._log_softmax(logits, ranks, self.config.draft_temperature or self.config.temperature)

    def _log_softmax(self, logits: torch.Tensor, ranks: torch.Tensor, temperature: float) -> torch.Tensor:
        logits = logits.float() / temperature
        if self.gap_end is not None:
            exclude_gap_end(logits, self.may_end.gather(1, ranks), self.gap_end)
        return torch.log_softmax(logits, dim=-1)

    def query_log_probs(
        self, content_length: torch.Tensor, ranks: torch.Tensor, contexts: torch.Tensor
    ) -> torch.Tensor:
        """One function evaluation: log-probs [B, Q, V] of the tokens at `ranks`; arguments as in `query_states`."""
        return self.log_probs(self.query_states(content_length, ranks, contexts), ranks)

    def token_sampler(self, positions: torch.Tensor) -> TokenSampler:
        """What drafts for these positions [B, K] must be drawn with, for the verification rule to be exact."""
        kind = GumbelSampler if self.config.coupling == "gumbel" else InverseCDFSampler
        return kind(self.rng, positions, self.model.config.vocab_size, TOKEN)

    def write_drafts(self, ranks: torch.Tensor, tokens: torch.Tensor) -> None:
        """Put tokens [B, K] at ranks [B, K], where later queries see them. Nothing is decided yet."""
        self.tokens.scatter_(1, ranks, tokens)

    def draft_window(
        self,
        tokens: torch.Tensor,
        size: torch.Tensor,
        log_q: torch.Tensor,
        positions: torch.Tensor,
        sampler: TokenSampler,
    ) -> DraftWindow:
        """The window of drafts for the next ranks. A draft that ends a gap before its last rank is the last of its row:
        the rest of the gap is not there to be verified."""
        if self.gap_end is not None:
            ranks = self.next_ranks(tokens.shape[1])  # [B, K]
            ends = ((tokens == self.gap_end) & self.may_end.gather(1, ranks) & (self.rest.gather(1, ranks) > 0)).long()
            size = size.minimum((ends.cumsum(1) - ends == 0).sum(1))
        return DraftWindow(tokens, size, log_q, positions, sampler)

    def verify(self, window: DraftWindow, log_p: torch.Tensor) -> Verdict:
        """Apply the verification rule of the config, see `asarm.sampling.verification`: accepted and next tokens."""
        rule = VERIFICATION_RULES[self.config.coupling]
        verdict = rule(window, log_p, self.rng, self.config.tolerance)
        if self.config.coupling == "block":  # whose numbers must not be used twice
            self.rng = self.rng.fold_in()
        return verdict

    def commit(
        self,
        drafts: torch.Tensor,
        size: torch.Tensor,
        accepted: torch.Tensor,
        next_tokens: torch.Tensor,
        evaluations: torch.Tensor | int = 1,
    ) -> torch.Tensor:
        """Decide the tokens of one iteration: accepted drafts, and the next token after them.

        drafts: [B, K] int64, at the next K ranks, of which the first size [B] were verified and accepted [B] kept.
        next_tokens: [B] int64; ignored where all K ranks, or all up to the row's end, are decided by drafts, and where
            the last accepted draft ends a gap early.
        evaluations: function evaluations it took, of each row [B] or of all.

        The cache keeps the content of accepted drafts; what it may hold after those is of rejected ones. Where the last
        decided token ends a gap, the rest of the gap is taken out of the row.
        Returns the indices [B'] of the rows that are left; finished ones move to the result.
        """
        rank = (self.decoded + accepted)[:, None]  # of the next token
        ended_by_draft = (accepted > 0) & (self._rest_of_ended_gap(self.decoded + accepted) > 0)
        added = (accepted < self.remaining.clamp(max=drafts.shape[1])) & ~ended_by_draft  # [B] bool
        self.write_drafts(rank, torch.where(added[:, None], next_tokens[:, None], self.tokens.gather(1, rank)))
        rest = self._rest_of_ended_gap(self.decoded + accepted + added)  # [B]
        self._count(size, accepted, evaluations, rest)
        if self.result.trace is not None:
            self._record_trace(self.result.trace, drafts, size, accepted, added, rest)
        self.cache.set_lengths(torch.minimum(self.cache.lengths, self.decoded + accepted))
        self.decoded = self.decoded + accepted + added
        self._take_out(rest)
        return self.retire_finished()

    def _rest_of_ended_gap(self, decoded: torch.Tensor) -> torch.Tensor:
        """How many ranks from decoded [B] (at least 1) on are left of a gap that the token before has ended: [B]."""
        if self.gap_end is None:
            return torch.zeros_like(decoded)
        last = (decoded - 1).clamp(min=0)[:, None]
        ended = (self.tokens.gather(1, last) == self.gap_end) & self.may_end.gather(1, last)
        return torch.where(ended, self.rest.gather(1, last), 0)[:, 0]

    def _take_out(self, count: torch.Tensor) -> None:
        """Take the next count [B] ranks out of their rows: later ones move up, and they come last, before scratch."""
        if self.gap_end is None or not count.any():
            return
        ranks = torch.arange(self.tokens.shape[1], device=count.device)
        taken = (ranks >= self.decoded[:, None]) & (ranks < (self.decoded + count)[:, None])  # [B, R]
        order = (taken | (ranks >= self.width)).byte().argsort(dim=1, stable=True)
        for name in ("tokens", "positions", "may_end", "rest"):
            setattr(self, name, getattr(self, name).gather(1, order))
        self.total = self.total - count

    def retire_finished(self) -> torch.Tensor:
        """Move finished rows to the result and out of the batch, where they would only cost time.

        Returns the indices [B'] of the rows that are left.
        """
        finished = self.decoded >= self.total
        kept = (~finished).nonzero()[:, 0]
        if finished.any():
            for row in finished.nonzero()[:, 0].tolist():
                total = int(self.total[row])
                self.result.tokens[self.rows[row], self.positions[row, :total]] = self.tokens[row, :total]
            for name in ("tokens", "positions", "contexts", "may_end", "rest", "total", "decoded", "rows"):
                setattr(self, name, getattr(self, name)[kept])
            self.rng = self.rng.select(kept)
            self.cache.keep_rows(kept)
        return kept

    def _count(
        self, size: torch.Tensor, accepted: torch.Tensor, evaluations: torch.Tensor | int, rest: torch.Tensor
    ) -> None:
        """Add one iteration to the counts of the result. size, accepted: [B] drafts. rest: [B] targets not drawn."""
        rows = self.rows.cpu()  # all different
        if self.gap_end is not None:
            self.result.targets[rows] -= rest.cpu()
        self.result.nfe[rows] += evaluations.cpu() if isinstance(evaluations, torch.Tensor) else evaluations
        if self.window == 0:
            return
        column = torch.arange(self.window, device=size.device)
        self.result.proposed[rows] += ((column <= accepted[:, None]) & (column < size[:, None])).cpu()
        self.result.accepted[rows] += (column < accepted[:, None]).cpu()

    def _record_trace(
        self,
        trace: list[list[TraceStep]],
        drafts: torch.Tensor,
        size: torch.Tensor,
        accepted: torch.Tensor,
        added: torch.Tensor,
        rest: torch.Tensor,
    ) -> None:
        """Append one iteration to the trace of each row; arguments as in `commit`, before its tokens are decided.
        rest: [B], ranks after these that an ended gap leaves."""
        numbers = zip(*(one.tolist() for one in (drafts, size, accepted, added, rest)), strict=True)
        for row, (draft, proposed, kept, has_next, left) in enumerate(numbers):
            first = int(self.decoded[row])
            positions = self.positions[row, first:].tolist()
            pairs = [(positions[kept], int(self.tokens[row, first + kept]))] if has_next else []
            after = kept + len(pairs)
            pairs += [(position, self.gap_end) for position in positions[after : after + left]]
            step = TraceStep(positions[:proposed], draft[:proposed], kept, pairs)
            trace[int(self.rows[row])].append(step)
