"""Counter-based random numbers: functions of (seed of the row, position, stream), and the token samplers that use them.

A row's outcome depends on its seed alone: not on the rest of the batch, nor on how many drafts were discarded. The
number of a draft that was never verified counts as unused: using it again leaves every distribution exact. Where the
verification rule looks at all drafts of a window at once, each iteration takes new numbers (`CounterRNG.fold_in`).
The generator applies the output function of SplitMix64 (Steele, Lea & Flood 2014) to keys and counters.
"""

from collections.abc import Sequence

import torch

TOKEN, REPLACEMENT, VERDICT = 0, 1, 2  # streams: which token, which token after a rejection, accept or not
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit numbers, which torch's arithmetic wraps around
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of int64: zeros come in, not copies of the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix_(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function, in place: int64 to int64, every bit depends on every bit."""
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_MULTIPLIER_1)
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_MULTIPLIER_2)
    return x.bitwise_xor_(_shift_right(x, 31))


class CounterRNG:
    """Random numbers for the rows of a batch. seeds: [B] int64."""

    def __init__(self, seeds: torch.Tensor):
        self.seeds = seeds

    @classmethod
    def from_seeds(cls, seeds: Sequence[int], device: torch.device) -> "CounterRNG":
        """seeds: one integer a row."""
        return cls(torch.tensor(list(seeds), dtype=torch.long, device=device))

    def select(self, rows: torch.Tensor) -> "CounterRNG":
        """The numbers of some rows, by their indices [B']."""
        return CounterRNG(self.seeds[rows])

    def fold_in(self) -> "CounterRNG":
        """New numbers for the same rows, derived from these."""
        return CounterRNG(_mix_(self.seeds * _GOLDEN_GAMMA - 1))

    def _keys(self, positions: torch.Tensor, stream: int) -> torch.Tensor:
        keys = _mix_(_mix_(self.seeds * _GOLDEN_GAMMA + stream + 1)[:, None] + positions * _GOLDEN_GAMMA)
        return _mix_(keys + _GOLDEN_GAMMA)  # [B, K]

    def uniform(self, positions: torch.Tensor, stream: int) -> torch.Tensor:
        """One number in [0, 1) for each position: [B, K] int64 -> [B, K] float64."""
        return _shift_right(self._keys(positions, stream), 11).double() * 2.0**-53

    def gumbel(self, positions: torch.Tensor, vocab_size: int, stream: int) -> torch.Tensor:
        """Standard Gumbel noise for each position and token: [B, K] int64 -> [B, K, V] float32.

        It is -log of an exponential variable, made from 53 bits: the smallest exponentials, which decide the argmax,
        keep their relative precision.
        """
        counters = torch.arange(1, vocab_size + 1, device=positions.device) * _GOLDEN_GAMMA
        bits = _mix_(self._keys(positions, stream)[..., None] + counters)
        minus_uniform = _shift_right(bits, 11).float().mul_(-(2.0**-53)).clamp_(2.0**-24 - 1, -(2.0**-54))
        return minus_uniform.log1p_().neg_().log_().neg_()


class GumbelSampler:
    """Draws tokens as argmax(log p + Gumbel noise): similar distributions mostly give the same token.

    For the positions [B, K] of a batch; noise: [B, K, V] float32.
    """

    def __init__(self, rng: CounterRNG, positions: torch.Tensor, vocab_size: int, stream: int):
        self.noise = rng.gumbel(positions, vocab_size, stream)

    def draw(self, log_probs: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor:
        """Tokens [B, K'] int64 from log_probs [B, K', V], which are those of some columns of the K positions."""
        return (log_probs + self.noise[:, columns]).argmax(-1)


class InverseCDFSampler:
    """Draws tokens by inverting the cumulative distribution: one random number a position, not one a token.

    For the positions [B, K] of a batch; uniform: [B, K] float64.
    """

    def __init__(self, rng: CounterRNG, positions: torch.Tensor, vocab_size: int, stream: int):
        self.uniform = rng.uniform(positions, stream)

    def draw(self, log_probs: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor:
        """As in `GumbelSampler`."""
        return inverse_cdf(log_probs.exp(), self.uniform[:, columns])


TokenSampler = GumbelSampler | InverseCDFSampler


def inverse_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens [...] int64 with probabilities proportional to weights [..., V], by uniform [...] in [0, 1)."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    # The first token whose cumulative weight is above the threshold: never one of weight 0, unless all are.
    threshold = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp(max=weights.shape[-1] - 1)
