"""A batch while it is being decoded: tokens in rank order, what is decoded, and the cache that goes with it."""

import torch
import torch.nn.functional as F

from asarm.order import rank_order
from asarm.sampling.noise import Noise
from asarm.sampling.result import SampleResult, TraceStep


class Decoding:
    """The unfinished rows of a batch (B shrinks as rows are done), and the results of all of them.

    tokens, positions: [B, W + slack] int64 in rank order; ranks behind a row's end are scratch.
    decoded: [B] int64, ranks whose tokens are settled. total: [B] int64, ranks of the whole text.
    rows: [B] int64, which row of the input each one is.
    """

    def __init__(self, model, tokens, given, target, config, seeds, window: int, trace: bool):
        order = rank_order(given, target)
        device = tokens.device
        self.model, self.temperature = model, config.temperature
        self.total, self.decoded = order.length, order.prompt_length.clone()
        width = int(self.total.max())
        # A window that starts at the last rank may write `window` tokens.
        self.positions = F.pad(order.order[:, :width], (0, window))
        self.tokens = F.pad(tokens.gather(1, order.order)[:, :width], (0, window))
        self.contexts = F.pad(order.content_context()[:, :width], (0, window))
        self.rows = torch.arange(len(tokens), device=device)
        self.noise = Noise(torch.tensor(list(seeds), dtype=torch.long, device=device))
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

    def log_probs(self, upto: torch.Tensor, ranks: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """One function evaluation: the laws [B, Q, V] (log, float32) of the tokens at `ranks` given `contexts` ranks.

        upto: [B] int64; content up to this rank goes to the cache, drafts included. ranks, contexts: [B, Q] int64.
        """
        start = self.cache.lengths
        index = start[:, None] + torch.arange(int((upto - start).max()), device=upto.device)  # [B, C]
        logits = self.model(
            self.tokens.gather(1, index),
            self.positions.gather(1, index),
            self.contexts.gather(1, index).minimum(upto[:, None]),
            self.positions.gather(1, ranks),
            contexts.minimum(upto[:, None]),
            self.cache,
        )
        self.cache.set_lengths(upto)
        return torch.log_softmax(logits.float() / self.temperature, dim=-1)

    def place(self, ranks: torch.Tensor, tokens: torch.Tensor) -> None:
        """Write tokens [B, K] at ranks [B, K], as drafts: nothing is settled."""
        self.tokens.scatter_(1, ranks, tokens)

    def settle(self, accepted: torch.Tensor, added: torch.Tensor, evaluations: torch.Tensor) -> None:
        """accepted [B] drafts and added [B] other tokens behind them are decoded, at the cost of evaluations [B].

        What the cache holds of the accepted drafts stays; what it may hold behind them belongs to rejected ones.
        """
        self.cache.set_lengths(torch.minimum(self.cache.lengths, self.decoded + accepted))
        self.decoded = self.decoded + accepted + added
        self.result.nfe[self.rows.cpu()] += evaluations.cpu()  # rows are all different
        done = self.decoded >= self.total
        if done.any():
            self._take_out(done)

    def _take_out(self, done: torch.Tensor) -> None:
        """Finished rows go to the result and out of the batch, where they would only cost time."""
        for row in done.nonzero()[:, 0].tolist():
            total = int(self.total[row])
            self.result.tokens[self.rows[row], self.positions[row, :total]] = self.tokens[row, :total]
        keep = (~done).nonzero()[:, 0]
        for name in ("tokens", "positions", "contexts", "total", "decoded", "rows"):
            setattr(self, name, getattr(self, name)[keep])
        self.noise = Noise(self.noise.seeds[keep])
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
