"""Random numbers as a function of (row's seed, position, stream), not of the order in which they are asked for.

So a row's text depends on its seed alone: not on the batch around it, nor on how many drafts were thrown away. A
draft that was never judged leaves its number unused, so that the number may serve again and every law stays exact.
Where verdicts look at all drafts at once, every round takes new numbers instead (`fold_in`).
The generator is the output function of SplitMix64 (Steele, Lea & Flood 2014), applied to keys and counters.
"""

import torch

TOKEN, REPLACEMENT, VERDICT = 0, 1, 2  # streams: which token, which token after a rejection, accept or not
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit numbers, which torch's arithmetic wraps around
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift to the right without dragging the sign along."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix_(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function, in place: int64 to int64, every bit depends on every bit."""
    x.bitwise_xor_(_shifted(x, 30)).mul_(_FIRST)
    x.bitwise_xor_(_shifted(x, 27)).mul_(_SECOND)
    return x.bitwise_xor_(_shifted(x, 31))


class CounterRNG:
    """The random numbers of a batch. seeds: [B] int64."""

    def __init__(self, seeds: torch.Tensor):
        self.seeds = seeds

    def fold_in(self) -> "CounterRNG":
        """Other numbers for the same rows, as a function of these."""
        return CounterRNG(_mix_(self.seeds * _GOLDEN - 1))

    def _keys(self, positions: torch.Tensor, stream: int) -> torch.Tensor:
        keys = _mix_(_mix_(self.seeds * _GOLDEN + stream + 1)[:, None] + positions * _GOLDEN)
        return _mix_(keys + _GOLDEN)  # [B, K]

    def uniform(self, positions: torch.Tensor, stream: int) -> torch.Tensor:
        """One number in [0, 1) for each position: [B, K] int64 -> [B, K] float64."""
        return _shifted(self._keys(positions, stream), 11).double() * 2.0**-53

    def gumbel(self, positions: torch.Tensor, vocab_size: int, stream: int) -> torch.Tensor:
        """Standard Gumbel noise for each position and token: [B, K] int64 -> [B, K, V] float32.

        It is -log of an exponential variable, made from 53 bits: the smallest exponentials, which decide the argmax,
        keep their relative precision.
        """
        counters = torch.arange(1, vocab_size + 1, device=positions.device) * _GOLDEN
        bits = _mix_(self._keys(positions, stream)[..., None] + counters)
        minus_uniform = _shifted(bits, 11).float().mul_(-(2.0**-53)).clamp_(2.0**-24 - 1, -(2.0**-54))
        return minus_uniform.log1p_().neg_().log_().neg_()


class GumbelSampler:
    """Chooses tokens by the largest of log p + g: laws that are near make the same choice. values: [B, K, V]."""

    def __init__(self, noise: CounterRNG, positions: torch.Tensor, vocab_size: int, stream: int):
        self.values = noise.gumbel(positions, vocab_size, stream)

    def tokens(self, log_laws: torch.Tensor, at: slice = slice(None)) -> torch.Tensor:
        """Tokens [B, K'] drawn from laws [B, K', V] for the places `at` of the K."""
        return (log_laws + self.values[:, at]).argmax(-1)


def inverse_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens [...] with these weights [..., V] (not normalised), by inverting the cumulative law at uniform [...]."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    # The first token whose cumulative weight is above: never one of weight 0, unless all are.
    wanted = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[..., 0].clamp(max=weights.shape[-1] - 1)


class InverseCDFSampler:
    """Chooses tokens by inverting the cumulative law: one number a place, not one a token. values: [B, K]."""

    def __init__(self, noise: CounterRNG, positions: torch.Tensor, vocab_size: int, stream: int):
        self.values = noise.uniform(positions, stream)

    def tokens(self, log_laws: torch.Tensor, at: slice = slice(None)) -> torch.Tensor:
        """As in `GumbelSampler`."""
        return inverse_cdf(log_laws.exp(), self.values[:, at])
