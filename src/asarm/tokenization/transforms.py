"""`Transforms`: temperature, top-k, top-p, min-p, repetition penalty, bad words and allowed tokens.

All of them are pure functions of logits and of the tokens that a query knows, so that each conditional distribution has
a transformed one, and their product is the transformed joint. Every exact sampler draws from it, as targets and drafts
are transformed alike:

- The target of rank r knows the r ranks below it, whatever computes it: the sequential sampler, or a verification in
  which some of these ranks hold drafts. Column by column it is thus the distribution that the sequential sampler would
  draw from after the very same tokens. If one of these drafts is rejected, later columns are discarded with it.
- A draft knows the ranks that were decided before its window, and those that were drafted before it: with a draft head
  all lower ranks, as drafts are drawn one after the other; without one only the decided ranks, as all drafts of a
  window are drawn at once. Any distribution that does not depend on later tokens would be exact there; this one is
  accepted most.

`log_prob` takes transforms, too: there each target knows the ranks below it.

Order and meaning are those of the GenerationConfig of `transformers`: first the penalty of tokens that are known, then
what is forbidden, then temperature, top-k, top-p, min-p. Where everything that is left of a distribution is forbidden
(as at the last token of a bad word, if only that is allowed), nothing is.

Shapes: B rows, R ranks, Q queries, N positions, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.open_gaps import open_targets
from asarm.utils.config import check, option
from asarm.utils.errors import InputError

# Beyond these, logits divided by the temperature are no longer numbers of float32, or all the same.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-9, 1e9


class TokenIds(list[int]):
    """Token ids, from a list of them or from text such as `17,3`, as it is on a command line."""

    def __init__(self, ids: str | Iterable[int]):
        super().__init__(map(int, ids.split(",")) if isinstance(ids, str) else ids)


@dataclass(kw_only=True)
class Transforms:
    """How conditional distributions are transformed; by default not at all."""

    temperature: float = option(1.0, "divides the logits; at 0 the likeliest token is taken")
    top_k: int = option(0, "only the top_k likeliest tokens; 0 for all")
    top_p: float = option(1.0, "only the likeliest tokens that have this probability together")
    min_p: float = option(0.0, "only tokens with at least this share of the likeliest one's probability")
    repetition_penalty: float = option(
        1.0, "divides the positive logits, and multiplies the negative ones, of tokens that are in the context"
    )
    bad_words_ids: list[TokenIds] = option(
        [], "token sequences that are not written, each as ids joined by commas: 17 4,23"
    )
    suppress_tokens: list[int] = option([], "ids of tokens that are not written")

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)
        check(self.top_k >= 0, f"top_k must be at least 0, which is all tokens, not {self.top_k}")
        check(0 < self.top_p <= 1, f"top_p must lie above 0 and be at most 1, not {self.top_p}")
        check(0 <= self.min_p <= 1, f"min_p must lie in [0, 1], not {self.min_p}")
        check(
            1e-3 <= self.repetition_penalty <= 1e3,
            f"repetition_penalty must lie in [0.001, 1000], not {self.repetition_penalty}",
        )
        self.bad_words_ids = [TokenIds(word) for word in self.bad_words_ids]
        for word in self.bad_words_ids:
            check(
                len(word) > 0 and min(word) >= 0, f"bad_words_ids has {word}: give at least one id, from 0 on, a word"
            )
        check(min(self.suppress_tokens, default=0) >= 0, "suppress_tokens must be ids, from 0 on")

    @property
    def looks_at_ids(self) -> bool:
        """Whether logits must be there for the whole vocabulary."""
        return self.repetition_penalty != 1 or bool(self.bad_words_ids)

    def log_probs(self, logits: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """As `logits`, log-probs."""
        return torch.log_softmax(self.logits(logits, *arguments, **keywords), dim=-1)

    def logits(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        at: torch.Tensor,
        known: torch.Tensor,
        allowed: torch.Tensor | None = None,
        gap_end: int | None = None,
        temperature: float | None = None,
    ) -> torch.Tensor:
        """Transformed logits [B, Q, V] float32 of queries, by those of the model [B, Q, V], which may be changed.

        tokens, positions: [B, R] int64, of the ranks. at: [B, Q] int64, positions of the queries. known: [B, Q] int64,
        how many of the first ranks each query knows. allowed: [B, Q, V] bool, or None for all tokens.
        gap_end: the token that ends gaps, which is no text: it is never penalised. temperature: instead of that of the
        settings.
        """
        logits = logits.float()
        temperature = self.temperature if temperature is None else temperature
        if self.repetition_penalty != 1:
            seen = known_tokens(tokens, known, logits.shape[-1], gap_end)
            penalised = torch.where(logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty)
            logits = torch.where(seen, penalised, logits)
        for ids in runs(self.suppress_tokens):
            logits[..., ids] = float("-inf")
        if allowed is not None:
            logits = restricted(logits, allowed)
        if self.bad_words_ids:
            logits = restricted(logits, ~completing(self.bad_words_ids, tokens, positions, at, known, logits.shape[-1]))
        if temperature == 0:
            return torch.full_like(logits, float("-inf")).scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
        if temperature != 1:
            logits = logits / temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[..., -1:], float("-inf"))
        if self.top_p < 1:
            logits = nucleus(logits, self.top_p)
        if self.min_p > 0:
            probs = logits.softmax(-1)
            logits = logits.masked_fill(probs < self.min_p * probs.amax(-1, keepdim=True), float("-inf"))
        return logits


def check_temperature(name: str, value: float) -> None:
    """Raise InputError for a temperature that cannot be."""
    is_possible = value == 0 or LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE
    check(is_possible, f"{name} must lie in [{LOWEST_TEMPERATURE:g}, {HIGHEST_TEMPERATURE:g}], or be 0, not {value}")


def runs(ids: Iterable[int]) -> list[slice]:
    """Ids as slices, one for each run of consecutive ones."""
    found: list[slice] = []
    for token in sorted(set(ids)):
        if found and found[-1].stop == token:
            found[-1] = slice(found[-1].start, token + 1)
        else:
            found.append(slice(token, token + 1))
    return found


def restricted(logits: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The logits [..., V] with -inf for tokens that are not kept [..., V]; as they are, where none would be left."""
    is_left = (kept & (logits > float("-inf"))).any(-1, keepdim=True)
    return logits.masked_fill(~kept & is_left, float("-inf"))


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The logits [..., V] of the likeliest tokens that have probability top_p together (at least one); others -inf."""
    values, order = logits.sort(-1)  # ascending
    unlikely = values.softmax(-1).cumsum(-1) <= 1 - top_p
    unlikely[..., -1] = False
    return logits.masked_fill(torch.zeros_like(unlikely).scatter(-1, order, unlikely), float("-inf"))


def known_tokens(tokens: torch.Tensor, known: torch.Tensor, vocab_size: int, gap_end: int | None) -> torch.Tensor:
    """Which tokens are among the first known [B, Q] of the ranks' tokens [B, R]: [B, Q, V] bool; never gap_end."""
    ranks = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    first = tokens.new_full((len(tokens), vocab_size), tokens.shape[1])  # rank at which each token comes first
    first = first.scatter_reduce(1, tokens, ranks, "amin")
    if gap_end is not None:
        first[:, gap_end] = tokens.shape[1]
    return first[:, None] < known[..., None]


def completing(
    words: Iterable[list[int]],
    tokens: torch.Tensor,
    positions: torch.Tensor,
    at: torch.Tensor,
    known: torch.Tensor,
    vocab_size: int,
) -> torch.Tensor:
    """Which tokens would complete a word at queries: [B, Q, V] bool. Arguments as in `Transforms.logits`.

    A word may stand around a query at any offset: its other tokens are then known, to the left, to the right, or both.
    """
    is_known = torch.arange(tokens.shape[1], device=tokens.device) < known[..., None]  # [B, Q, R]
    found = torch.zeros(*at.shape, vocab_size, dtype=torch.bool, device=at.device)
    for word in words:
        for own, last in enumerate(word):
            complete = torch.ones_like(at, dtype=torch.bool)  # [B, Q]
            for index, token in enumerate(word):
                if index != own:
                    here = is_known & (positions[:, None] == (at + index - own)[..., None])
                    complete = complete & (here & (tokens == token)[:, None]).any(-1)
            found[..., last] |= complete
    return found


class AllowedTokens:
    """Which tokens may be written at each position: mask [1 or B, N, V] bool, whose rows shrink with the batch."""

    def __init__(self, mask: torch.Tensor):
        self.mask, self.is_shared = mask, len(mask) == 1

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop all rows except `rows` [B'] (indices)."""
        if not self.is_shared:
            self.mask = self.mask[rows]

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """The mask [B, Q, V] at positions [B, Q]."""
        if self.is_shared:
            return self.mask[0][positions]
        return self.mask.gather(1, positions[..., None].expand(-1, -1, self.mask.shape[-1]))


def check_possible(
    transforms: Transforms, allowed: torch.Tensor | None, never: Iterable[slice], vocab_size: int, batch: InfillBatch,
    gap_end: int | None,
) -> None:  # fmt: skip
    """Raise InputError where no token is left for a target, or settings do not fit the batch or its vocabulary.

    allowed: [1 or B, N, V] bool or None. never: ids that are never sampled.
    """
    if allowed is None and not transforms.bad_words_ids and not transforms.suppress_tokens:
        return
    rows, length = batch.tokens.shape
    largest = max((max(word) for word in transforms.bad_words_ids), default=0)
    check(largest < vocab_size, f"bad_words_ids has {largest}, but ids lie in 0..{vocab_size - 1}")
    largest = max(transforms.suppress_tokens, default=0)
    check(largest < vocab_size, f"suppress_tokens has {largest}, but ids lie in 0..{vocab_size - 1}")
    possible = torch.ones(vocab_size, dtype=torch.bool, device=batch.tokens.device)
    for ids in (*never, *runs(transforms.suppress_tokens)):
        possible[ids] = False
    for word in transforms.bad_words_ids:
        if len(word) == 1:
            possible[word[0]] = False
    if allowed is not None and allowed.shape not in ((1, length, vocab_size), (rows, length, vocab_size)):
        raise ValueError(f"allowed has shape {tuple(allowed.shape)}, not (1 or {rows}, {length}, {vocab_size})")
    left = possible.expand(1, length, -1) if allowed is None else allowed & possible  # [1 or B, N, V]
    may_write = left.any(-1)
    if gap_end is not None:
        text = left.sum(-1) > left[..., gap_end]  # tokens but the one that ends gaps
        may_write = torch.where(open_targets(batch, gap_end), may_write, text)
    stuck = (batch.target & ~may_write).nonzero()
    if len(stuck):
        row, position = stuck[0].tolist()
        raise InputError(f"no token is allowed at position {position} of text {row}: allow more, or take bad words out")
