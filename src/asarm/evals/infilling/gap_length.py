"""Lengths of gaps that are not given: a distribution estimated from the visible text, and the choice among proposals.

The length of a gap is estimated from pieces of the visible text that are of the gap's kind, such as sentences. Their
lengths vary between texts and within them; both variances are estimated from the visible pieces of all texts, which
gives a normal distribution for the length of each gap. Proposals are quantiles of it, equally likely a priori.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass
class LengthDistribution:
    """Lengths of pieces of texts: their mean, and their variances between texts and within a text."""

    mean: float
    between: float
    within: float

    @classmethod
    def fit(cls, visible: Sequence[Sequence[float]]) -> "LengthDistribution":
        """From the lengths of the visible pieces of each text; texts may have different numbers of them, or none.

        A one-way analysis of variance with texts as random effects. All is 0 when there are no pieces.
        """
        groups = [np.array(lengths, dtype=float) for lengths in visible if len(lengths)]
        sizes = np.array([len(group) for group in groups], dtype=float)
        total = sizes.sum()
        if not total:
            return cls(0.0, 0.0, 0.0)
        means = np.array([group.mean() for group in groups])
        mean = float(sizes @ means / total)
        inside = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
        within = inside / float(total - len(groups)) if total > len(groups) else 0.0
        if len(groups) < 2:
            return cls(mean, 0.0, within)
        of_means = float(sizes @ (means - mean) ** 2) / (len(groups) - 1)
        usual_size = (total - (sizes**2).sum() / total) / (len(groups) - 1)
        return cls(mean, max(0.0, float(of_means - within) / float(usual_size)), within)

    def gap(self, visible: Sequence[float], pieces: int) -> tuple[float, float]:
        """Mean and standard deviation of the length of a gap of `pieces` pieces, given the visible ones."""
        weight = 0.0  # of the text's own pieces
        if len(visible) and self.between:
            weight = self.between / (self.between + self.within / len(visible))
        mean = self.mean + (weight * (np.mean(visible) - self.mean) if weight else 0.0)
        variance = pieces**2 * self.between * (1 - weight) + pieces * self.within
        return float(pieces * mean), float(variance**0.5)

    def quantiles(self, visible: Sequence[float], pieces: int, count: int) -> list[float]:
        """Quantiles (i + 1/2) / count of the distribution of such a gap, ascending."""
        mean, deviation = self.gap(visible, pieces)
        distribution = NormalDist(mean, max(deviation, 1e-9))
        return [distribution.inv_cdf((i + 0.5) / count) for i in range(count)]

    def proposals(self, visible: Sequence[float], pieces: int, count: int) -> list[int]:
        """At most `count` different lengths, ascending, each at least 1: quantiles of the gap's distribution."""
        return whole_lengths(self.quantiles(visible, pieces, count))


def whole_lengths(lengths: Sequence[float]) -> list[int]:
    """Different numbers of tokens, ascending, each at least 1."""
    return sorted({max(1, round(length)) for length in lengths})


def choose(scores: dict[int, float]) -> int:
    """The proposed length whose text has the highest score (nats a token); the shorter one of two equals.

    The score of a filled text is its exact joint log-density given the prefix, of gap and suffix together, over their
    number of tokens. By their sum short gaps would win, as each token costs some nats.
    """
    return max(sorted(scores), key=scores.__getitem__)
