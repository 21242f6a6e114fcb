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


class DecodeState:
    """The unfinished rows of a batch (B shrinks as rows are finished), and the results of all of them.

    tokens, positions: [B, R] int64 in rank order; ranks past a row's end are scratch.
    decoded: [B] int64, ranks whose tokens are decided: they are 0 .. decoded - 1. total: [B] int64, ranks of the row.
    rows: [B] int64, index of each row in the input.
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
        width = int(self.total.max())
        scratch = (0, lookahead)  # for the ranks past its end that the last rank of a row looks ahead to
        self.positions = F.pad(order.order[:, :width], scratch)
        self.tokens = F.pad(batch.tokens.gather(1, order.order)[:, :width], scratch)
        self.contexts = F.pad(order.content_context()[:, :width], scratch)
        self.rows = torch.arange(count, device=batch.tokens.device)
        self.rng = CounterRNG.from_seeds(seeds, batch.tokens.device)
        self.cache = self.model.new_cache(count, width, length)
        self.window = window
        self.result = SampleResult(
            tokens=batch.tokens.clone(),
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

    def log_probs(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probs (float32) of the tokens at queries with these final states: [B, Q, E] -> [B, Q, V]."""
        return self._log_softmax(states, self.config.temperature)

    def draft_log_probs(self, states: torch.Tensor) -> torch.Tensor:
        """As `log_probs`, of what tokens are drafted from."""
        return self._log_softmax(states, self.config.draft_temperature or self.config.temperature)

    def _log_softmax(self, states: torch.Tensor, temperature: float) -> torch.Tensor:
        return torch.log_softmax(self.model.logits(states).float() / temperature, dim=-1)

    def query_log_probs(
        self, content_length: torch.Tensor, ranks: torch.Tensor, contexts: torch.Tensor
    ) -> torch.Tensor:
        """One function evaluation: log-probs [B, Q, V] of the tokens at `ranks`; arguments as in `query_states`."""
        return self.log_probs(self.query_states(content_length, ranks, contexts))

    def token_sampler(self, positions: torch.Tensor) -> TokenSampler:
        """What drafts for these positions [B, K] must be drawn with, for the verification rule to be exact."""
        kind = GumbelSampler if self.config.coupling == "gumbel" else InverseCDFSampler
        return kind(self.rng, positions, self.model.config.vocab_size, TOKEN)

    def write_drafts(self, ranks: torch.Tensor, tokens: torch.Tensor) -> None:
        """Put tokens [B, K] at ranks [B, K], where later queries see them. Nothing is decided yet."""
        self.tokens.scatter_(1, ranks, tokens)

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
        next_tokens: [B] int64; ignored where all K ranks, or all up to the row's end, are decided by drafts.
        evaluations: function evaluations it took, of each row [B] or of all.

        The cache keeps the content of accepted drafts; what it may hold after those is of rejected ones.
        Returns the indices [B'] of the rows that are left; finished ones move to the result.
        """
        added = accepted < self.remaining.clamp(max=drafts.shape[1])  # [B] bool
        rank = (self.decoded + accepted)[:, None]
        self.write_drafts(rank, torch.where(added[:, None], next_tokens[:, None], self.tokens.gather(1, rank)))
        self._count(size, accepted, evaluations)
        if self.result.trace is not None:
            self._record_trace(self.result.trace, drafts, size, accepted, added)
        self.cache.set_lengths(torch.minimum(self.cache.lengths, self.decoded + accepted))
        self.decoded = self.decoded + accepted + added
        return self.retire_finished()

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
            for name in ("tokens", "positions", "contexts", "total", "decoded", "rows"):
                setattr(self, name, getattr(self, name)[kept])
            self.rng = self.rng.select(kept)
            self.cache.keep_rows(kept)
        return kept

    def _count(self, size: torch.Tensor, accepted: torch.Tensor, evaluations: torch.Tensor | int) -> None:
        """Add one iteration to the counts of the result. size, accepted: [B] drafts."""
        rows = self.rows.cpu()  # all different
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
    ) -> None:
        """Append one iteration to the trace of each row; arguments as in `commit`, before its tokens are decided."""
        numbers = zip(drafts.tolist(), size.tolist(), accepted.tolist(), added.tolist(), strict=True)
        for row, (draft, proposed, kept, has_next) in enumerate(numbers):
            first = int(self.decoded[row])
            positions = self.positions[row, first:].tolist()
            pair = (positions[kept], int(self.tokens[row, first + kept]))
            step = TraceStep(positions[:proposed], draft[:proposed], kept, [pair] if has_next else [])
            trace[int(self.rows[row])].append(step)
