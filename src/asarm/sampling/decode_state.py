"""A batch while it is being decoded: tokens in rank order, what is decoded, and the cache that goes with it."""

import torch
import torch.nn.functional as F

from asarm.models.rank_order import rank_order
from asarm.sampling.counter_rng import TOKEN, CounterRNG, GumbelSampler, InverseCDFSampler
from asarm.sampling.result import SampleResult, TraceStep


class DecodeState:
    """The unfinished rows of a batch (B shrinks as rows are done), and the results of all of them.

    tokens, positions: [B, W + ahead] int64 in rank order; ranks behind a row's end are scratch.
    decoded: [B] int64, ranks whose tokens are settled. total: [B] int64, ranks of the whole text.
    rows: [B] int64, which row of the input each one is.
    """

    def __init__(self, model, tokens, given, target, config, seeds, window: int, trace: bool, ahead: int | None = None):
        """window: most drafts judged at once. ahead: most ranks, from the next one on, asked for at once."""
        order = rank_order(given, target)
        device = tokens.device
        self.model, self.temperature, self.coupling = model, config.temperature, config.coupling
        self.head = config.draft == "self" and model.draft_head is not None
        self.total, self.decoded = order.length, order.prompt_length.clone()
        width = int(self.total.max())
        # Those asked for at the last rank lie behind the row's end.
        scratch = (0, window if ahead is None else ahead)
        self.positions = F.pad(order.order[:, :width], scratch)
        self.tokens = F.pad(tokens.gather(1, order.order)[:, :width], scratch)
        self.contexts = F.pad(order.content_context()[:, :width], scratch)
        self.rows = torch.arange(len(tokens), device=device)
        self.noise = CounterRNG(torch.tensor(list(seeds), dtype=torch.long, device=device))
        self.cache = model.new_cache(len(tokens), width, tokens.shape[1])
        self.result = SampleResult(
            tokens=tokens.clone(),
            nfe=torch.zeros(len(tokens), dtype=torch.long),
            targets=target.sum(1).cpu(),
            proposed=torch.zeros(len(tokens), window, dtype=torch.long),
            accepted=torch.zeros(len(tokens), window, dtype=torch.long),
            seconds=0.0,
            trace=[[] for _ in seeds] if trace else None,
        )

    @property
    def unfinished(self) -> bool:
        return len(self.rows) > 0

    def next_ranks(self, count: int) -> torch.Tensor:
        """The next `count` ranks of each row, those behind its end included: [B, count] int64."""
        return self.decoded[:, None] + torch.arange(count, device=self.rows.device)

    def states(self, upto: torch.Tensor, ranks: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """One function evaluation: the final states [B, Q, E] of queries for `ranks` that see `contexts` ranks.

        upto: [B] int64; content up to this rank goes to the cache, drafts included. ranks, contexts: [B, Q] int64.
        """
        start = self.cache.lengths
        index = start[:, None] + torch.arange(int((upto - start).max()), device=upto.device)  # [B, C]
        states = self.model.hidden(
            self.tokens.gather(1, index),
            self.positions.gather(1, index),
            self.contexts.gather(1, index).minimum(upto[:, None]),
            self.positions.gather(1, ranks),
            contexts.minimum(upto[:, None]),
            self.cache,
        )
        self.cache.set_lengths(upto)
        return states

    def laws(self, states: torch.Tensor) -> torch.Tensor:
        """The laws (log, float32) of the tokens at queries with these final states: [B, Q, E] -> [B, Q, V]."""
        return torch.log_softmax(self.model.logits(states).float() / self.temperature, dim=-1)

    def log_probs(self, upto: torch.Tensor, ranks: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """One function evaluation: the laws [B, Q, V] of the tokens at `ranks`; arguments as in `states`."""
        return self.laws(self.states(upto, ranks, contexts))

    def choice(self, positions: torch.Tensor) -> GumbelSampler | InverseCDFSampler:
        """What draws drafts for the places [B, K] of the text, such that the coupling can do its work."""
        kind = GumbelSampler if self.coupling == "gumbel" else InverseCDFSampler
        return kind(self.noise, positions, self.model.config.vocab_size, TOKEN)

    def place(self, ranks: torch.Tensor, tokens: torch.Tensor) -> None:
        """Write tokens [B, K] at ranks [B, K], as drafts: nothing is settled."""
        self.tokens.scatter_(1, ranks, tokens)

    def settle_window(self, drafts, size, accepted, following, added, evaluations) -> torch.Tensor:
        """The first accepted [B] of the drafts [B, K], of which size [B] were judged, are decoded.

        So is the token following [B] behind them, in rows where added [B] bool. evaluations: [B] int64, what it cost.
        Returns the rows that go on, as `settle`.
        """
        place = (self.decoded + accepted)[:, None]
        self.place(place, torch.where(added[:, None], following[:, None], self.tokens.gather(1, place)))
        index = torch.arange(drafts.shape[1], device=accepted.device)
        self.count((index <= accepted[:, None]) & (index < size[:, None]), index < accepted[:, None])
        self.record(drafts, size, accepted, added.long())
        if self.coupling == "block":
            self.noise = self.noise.fold_in()
        return self.settle(accepted, added.long(), evaluations)

    def settle(self, accepted: torch.Tensor, added: torch.Tensor, evaluations: torch.Tensor) -> torch.Tensor:
        """accepted [B] drafts and added [B] other tokens behind them are decoded, at the cost of evaluations [B].

        What the cache holds of the accepted drafts stays; what it may hold behind them belongs to rejected ones.
        Returns the indices [B'] of the rows that go on; those that are done are in the result.
        """
        self.cache.set_lengths(torch.minimum(self.cache.lengths, self.decoded + accepted))
        self.decoded = self.decoded + accepted + added
        self.result.nfe[self.rows.cpu()] += evaluations.cpu()  # rows are all different
        done = self.decoded >= self.total
        if done.any():
            self._take_out(done)
        return (~done).nonzero()[:, 0]

    def _take_out(self, done: torch.Tensor) -> None:
        """Finished rows go to the result and out of the batch, where they would only cost time."""
        for row in done.nonzero()[:, 0].tolist():
            total = int(self.total[row])
            self.result.tokens[self.rows[row], self.positions[row, :total]] = self.tokens[row, :total]
        keep = (~done).nonzero()[:, 0]
        for name in ("tokens", "positions", "contexts", "total", "decoded", "rows"):
            setattr(self, name, getattr(self, name)[keep])
        self.noise = CounterRNG(self.noise.seeds[keep])
        self.cache.keep_rows(keep)

    def count(self, judged: torch.Tensor, kept: torch.Tensor) -> None:
        """Book which drafts of the window were judged and which were kept: [B, K] bool each."""
        rows, width = self.rows.cpu(), judged.shape[1]
        self.result.proposed[rows, :width] += judged.cpu()
        self.result.accepted[rows, :width] += kept.cpu()

    def record(self, drafts: torch.Tensor, size: torch.Tensor, accepted: torch.Tensor, added: torch.Tensor) -> None:
        """Keep this step, if a trace is wanted: size [B] of the drafts [B, K] were proposed for the next ranks, so many
        accepted, and so many other tokens added behind them."""
        if self.result.trace is None:
            return
        numbers = zip(drafts.tolist(), size.tolist(), accepted.tolist(), added.tolist(), strict=True)
        for row, (draft, proposed, kept, more) in enumerate(numbers):
            first = int(self.decoded[row])
            places = self.positions[row, first:].tolist()
            tokens = self.tokens[row, first:].tolist()
            step = TraceStep(
                positions=places[:proposed],
                drafts=draft[:proposed],
                accepted=kept,
                added=list(zip(places[kept : kept + more], tokens[kept : kept + more], strict=True)),
            )
            self.result.trace[int(self.rows[row])].append(step)
