"""Counter-based random numbers: functions of (seed of the row, position, stream), and the token samplers that use them.

A row's outcome depends on its seed alone: not on the rest of the batch, nor on how many drafts were discarded. The
number of a draft that was never verified counts as unused: using it again leaves every distribution exact. Where the
verification rule looks at all drafts of a window at once, each iteration takes new numbers (`TabledRNG.fold_in`).
The generator applies the output function of SplitMix64 (Steele, Lea & Flood 2014) to keys and counters.
"""

from collections.abc import Sequence

import torch

# Streams: which token, which token after a rejection, accept or not, which alternatives.
TOKEN, REPLACEMENT, VERDICT, ALTERNATIVES = 0, 1, 2, 3
STREAMS = 4
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


def _keys(streams: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Keys [..., K] of mixed streams [...] at positions [..., K], int64."""
    return _mix_(_mix_(streams[..., None] + positions * _GOLDEN_GAMMA) + _GOLDEN_GAMMA)


def _uniform(bits: torch.Tensor) -> torch.Tensor:
    """Random bits int64 -> numbers in [0, 1) float64."""
    return _shift_right(bits, 11).double() * 2.0**-53


class CounterRNG:
    """Random numbers for the rows of a batch. seeds: [B] int64."""

    def __init__(self, seeds: torch.Tensor):
        self.seeds = seeds

    @classmethod
    def from_seeds(cls, seeds: Sequence[int], device: torch.device) -> "CounterRNG":
        """seeds: one integer a row."""
        return cls(torch.tensor(list(seeds), dtype=torch.long, device=device))

    def keys(self, positions: torch.Tensor, stream: int) -> torch.Tensor:
        """The random bits that numbers are made of: positions [B, K] int64 -> [B, K] int64."""
        return _keys(_mix_(self.seeds * _GOLDEN_GAMMA + (stream + 1)), positions)

    def uniform(self, positions: torch.Tensor) -> torch.Tensor:
        """Numbers in [0, 1) of all streams for each position: [B, K] int64 -> [streams, B, K] float64."""
        return _uniform(torch.stack([self.keys(positions, stream) for stream in range(STREAMS)]))

    def several(self, positions: torch.Tensor, stream: int, count: int) -> torch.Tensor:
        """Several numbers in [0, 1) for each position: [B, K] int64 -> [B, K, count] float64."""
        return _uniform(self._bits(positions, stream, count))

    def gumbel(self, positions: torch.Tensor, vocab_size: int, stream: int) -> torch.Tensor:
        """Standard Gumbel noise for each position and token: [B, K] int64 -> [B, K, V] float32.

        It is -log of an exponential variable, made from 53 bits: the smallest exponentials, which decide the argmax,
        keep their relative precision.
        """
        bits = self._bits(positions, stream, vocab_size)
        minus_uniform = _shift_right(bits, 11).float().mul_(-(2.0**-53)).clamp_(2.0**-24 - 1, -(2.0**-54))
        return minus_uniform.log1p_().neg_().log_().neg_()

    def _bits(self, positions: torch.Tensor, stream: int, count: int) -> torch.Tensor:
        """Random bits: [B, K] int64 -> [B, K, count] int64."""
        return _mix_(self.keys(positions, stream)[..., None] + self.counters(count, positions.device))

    def counters(self, count: int, device: torch.device) -> torch.Tensor:
        """What tells the numbers of a position apart, those of the tokens of a vocabulary: [count] int64."""
        return torch.arange(1, count + 1, device=device) * _GOLDEN_GAMMA


class TabledRNG(CounterRNG):
    """The same numbers, made once for all positions below `length`, so that a decoding step only looks them up.

    seeds: [B] int64, those of the numbers after these. table: [streams, B, length] int64, the bits by position.
    uniforms: [streams, B, length] float64. tokens: [V] int64, as of `counters`. `fold_in` overwrites them, so that a
    recorded step finds them.
    """

    def __init__(self, seeds: torch.Tensor, length: int, vocab_size: int):
        super().__init__(seeds)
        self.positions = torch.arange(length, device=seeds.device)[None]
        self.streams = torch.arange(-1, STREAMS + 1, device=seeds.device)[:, None]  # the first is for the next seeds
        self.tokens = super().counters(vocab_size, seeds.device)
        self.table = torch.empty(STREAMS, len(seeds), length, dtype=torch.long, device=seeds.device)
        self.uniforms = torch.empty(self.table.shape, dtype=torch.double, device=seeds.device)
        self.fold_in()

    def fold_in(self) -> None:
        """New numbers for the same rows, derived from these."""
        mixed = _mix_(self.seeds * _GOLDEN_GAMMA + self.streams)  # [streams + 2, B]
        self.seeds.copy_(mixed[0])
        self.table.copy_(_keys(mixed[2:], self.positions))
        self.uniforms.copy_(_shift_right(self.table, 11)).mul_(2.0**-53)

    def keys(self, positions: torch.Tensor, stream: int) -> torch.Tensor:
        return self.table[stream].gather(1, positions)

    def uniform(self, positions: torch.Tensor) -> torch.Tensor:
        return self.uniforms.gather(2, positions.expand(STREAMS, -1, -1))

    def counters(self, count: int, device: torch.device) -> torch.Tensor:
        return self.tokens[:count]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop all rows except `rows` [B'] (indices)."""
        self.seeds, self.table, self.uniforms = self.seeds[rows], self.table[:, rows], self.uniforms[:, rows]


def at_column(values: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """values [B, K, ...] at one column [B] a row: a copy [B, ...]."""
    rest = values.shape[2:]
    return values.gather(1, column.view(-1, 1, *[1] * len(rest)).expand(-1, 1, *rest))[:, 0]


class GumbelSampler:
    """Draws tokens as argmax(logits + Gumbel noise): similar distributions mostly give the same token.

    For the positions [B, K] of a batch; noise: [B, K, V] float32. Its weights are logits, and `never` is the weight of
    tokens that are not drawn. Weights of the first tokens alone will do.
    """

    never = float("-inf")

    def __init__(self, rng: CounterRNG, positions: torch.Tensor, vocab_size: int):
        self.noise = rng.gumbel(positions, vocab_size, TOKEN)

    def weights(self, logits: torch.Tensor) -> torch.Tensor:
        """What tokens are drawn from, by their logits [..., V] float32."""
        return logits

    def draw(self, weights: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Tokens [B, K'] int64 by weights [B, K', V], which are those of the K positions from number `first` on."""
        noise = self.noise[:, first : first + weights.shape[1], : weights.shape[2]]
        return (weights + noise).argmax(-1)

    def draw_target(self, weights: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """Tokens [B] int64 by the target's weights [B, V] at one column [B] a row, where no draft was looked at."""
        return (weights + at_column(self.noise, column)).argmax(-1)

    def alternatives(self, weights: torch.Tensor, tokens: torch.Tensor, count: int) -> torch.Tensor:
        """Other tokens [B, W, count] int64, all different, than those [B, W] that were drawn by weights [B, W, V] for
        the first W positions: here those that would have been drawn without these."""
        scores = weights + self.noise[:, : weights.shape[1], : weights.shape[2]]
        return scores.scatter_(-1, tokens[..., None], float("-inf")).topk(count).indices


class InverseCDFSampler:
    """Draws tokens by inverting the cumulative distribution: one random number a position, not one a token.

    For the positions [B, K] of a batch; uniform: [streams, B, K] float64, for what comes after drawing, too. Weights
    are probabilities; all else is as in `GumbelSampler`.
    """

    never = 0.0

    def __init__(self, rng: CounterRNG, positions: torch.Tensor, vocab_size: int):
        self.rng, self.positions = rng, positions
        self.uniform = rng.uniform(positions)

    def weights(self, logits: torch.Tensor) -> torch.Tensor:
        """As in `GumbelSampler`."""
        return logits.softmax(-1)

    def draw(self, weights: torch.Tensor, first: int = 0) -> torch.Tensor:
        """As in `GumbelSampler`."""
        return inverse_cdf(weights, self.uniform[TOKEN][:, first : first + weights.shape[1]])

    def draw_target(self, weights: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """As in `GumbelSampler`."""
        return inverse_cdf(weights, at_column(self.uniform[REPLACEMENT], column))

    def alternatives(self, weights: torch.Tensor, tokens: torch.Tensor, count: int) -> torch.Tensor:
        """As in `GumbelSampler`, drawn from what the distributions are without the tokens before."""
        uniform = self.rng.several(self.positions[:, : tokens.shape[1]], ALTERNATIVES, count)  # [B, W, count]
        weights, drawn = weights.clone(), [tokens]
        for number in range(count):
            weights.scatter_(-1, drawn[-1][..., None], 0.0)
            drawn.append(inverse_cdf(weights, uniform[..., number]))
        return torch.stack(drawn[1:], dim=-1)


TokenSampler = GumbelSampler | InverseCDFSampler


def inverse_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens [...] int64 with probabilities proportional to weights [..., V], by uniform [...] in [0, 1)."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    # The first token whose cumulative weight is above the threshold: never one of weight 0, unless all are.
    threshold = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp(max=weights.shape[-1] - 1)
