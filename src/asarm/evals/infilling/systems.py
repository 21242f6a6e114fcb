"""What fills gaps in a run: any-subset models, a left-to-right model, functions that write without a model.

Each holds the texts cut with its own tokens, by group (what tables are made of: tasks, splits), and what it needs to
know of lengths. What it writes is a function of the seed, the text, the trial and the number of tokens, not of the
batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from asarm.evals.infilling.causal import CausalModel
from asarm.evals.infilling.config import (
    CAUSAL,
    MEDIAN,
    ORACLE,
    PREFIX_ONLY,
    SEARCH,
    InfillEvalConfig,
    Variant,
    fixed_length,
)
from asarm.evals.infilling.example import InfillExample, truncate_context
from asarm.evals.infilling.infill import InfillResult, fill, search
from asarm.evals.resumable import sampling_seed
from asarm.models.compiled import compiled_for_decoding
from asarm.models.load import load_on_device
from asarm.tokenization.codec import TextCodec
from asarm.utils.files import sha256_of_tensors

NO_MODEL = "none"


class GapLengthPolicy:
    """How many tokens the gaps of one group take, for each choice of `gap_length`, with one model's tokens."""

    def __init__(
        self, every: Sequence[InfillExample], longest: int | None, propose: Callable[[InfillExample], list[int]]
    ):
        """every: all texts of the group, so that what is learned does not depend on how many of them are used.
        longest: the model's positions. propose: the lengths that a search tries."""
        self.longest, self.propose = longest, propose
        self.median = round(float(np.median([len(gap.reference_tokens) for gap in every])))

    def tried(self, choice: str, gap: InfillExample) -> list[int]:
        """The lengths that are tried for a text: one, but with search. InputError if the model takes none of them."""
        if choice == SEARCH:
            return self.fitting(gap, self.propose(gap))
        length = {ORACLE: len(gap.reference_tokens), MEDIAN: self.median}.get(choice) or fixed_length(choice)
        return self.fitting(gap, [length])

    def fitting(self, gap: InfillExample, lengths: list[int]) -> list[int]:
        """Those that the model takes, the others left out or made shorter; InputError if it takes none."""
        raise NotImplementedError


# All texts, cut with a model's tokens, and what is known of the lengths of their gaps: both by group. Takes the
# model's positions, too (None: no limit).
Cut = Callable[[TextCodec, int | None], tuple[dict[str, list[InfillExample]], dict[str, GapLengthPolicy]]]


class InfillSystem(Protocol):
    """gaps: texts by group. weights: digest of a model's weights. samplers: what its variants are called, or None for
    those that every any-subset model does. trials: at most so many are worth while."""

    name: str
    weights: str
    gaps: dict[str, list[InfillExample]]
    samplers: tuple[str, ...] | None
    trials: int | None

    def fill(self, gaps: list[InfillExample], group: str, variant: Variant, trial: int) -> list[InfillResult]:
        """The gaps of some texts, filled as the variant says."""


class AnySubsetSystem:
    """An any-subset model with its texts, cut with its tokens."""

    samplers, trials = None, None

    def __init__(self, name: str, config: InfillEvalConfig, cut: Cut, device: torch.device):
        model, _, revision = name.partition("@") if not Path(name).exists() else (name, "", "")
        loaded, self.codec = load_on_device(model, revision or None, config.white_space, device, config.dtype)
        self.name, self.config = name, config
        self.weights = sha256_of_tensors(loaded.state_dict().values())
        self.model = compiled_for_decoding(loaded, config.compile)
        self.longest = getattr(loaded.config, "n_positions", None)
        self.gaps, self.lengths = cut(self.codec, self.longest)
        choices = [variant.gap_length for variant in variants_of(self, config)]
        check_lengths(self.gaps, self.lengths, choices)

    def fill(self, gaps: list[InfillExample], group: str, variant: Variant, trial: int) -> list[InfillResult]:
        """The gaps of some texts, filled as the variant says."""
        tried = [self.lengths[group].tried(variant.gap_length, gap) for gap in gaps]
        sees_suffix = variant.sampler != PREFIX_ONLY
        whole = gaps if sees_suffix else [replace(gap, suffix_tokens=[]) for gap in gaps]
        # All lengths that are tried for a text see the same of it, so that their scores can be compared.
        seen = [truncate_context(gap, max(lengths), self.longest) for gap, lengths in zip(whole, tried, strict=True)]

        def seed(gap: InfillExample, length: int) -> int:
            return sampling_seed(self.config.seed, gap.index, trial, length)

        if variant.gap_length == SEARCH:
            size = self.config.batch_size
            filled = search(self.model, self.codec, seen, tried, variant.config, seed, size)
        else:
            rows = [(gap, lengths[0]) for gap, lengths in zip(seen, tried, strict=True)]
            filled = fill(self.model, self.codec, rows, variant.config, [seed(*row) for row in rows], sees_suffix)
        return with_cuts(filled, whole, seen)


class CausalSystem:
    """A left-to-right model with its texts, cut with its tokens."""

    samplers, trials = (CAUSAL,), None

    def __init__(self, name: str, config: InfillEvalConfig, cut: Cut, device: torch.device, use_fim: bool = False):
        """use_fim: show it the suffix, too, if it was trained to fill in the middle."""
        self.name, self.config = name, config
        self.model = CausalModel(name, device)
        self.fim = self.model.fim if use_fim else None
        self.weights = sha256_of_tensors(self.model.model.state_dict().values())
        self.longest = self.model.longest
        if self.longest is not None:  # room for its marks
            self.longest -= len(self.model.begin) + len(self.fim or ())
        self.gaps, self.lengths = cut(self.model.codec, self.longest)
        check_lengths(self.gaps, self.lengths, [ORACLE])

    def fill(self, gaps: list[InfillExample], group: str, variant: Variant, trial: int) -> list[InfillResult]:
        """The gaps of some texts, each of the length of the right text in this model's tokens."""
        lengths = [self.lengths[group].tried(variant.gap_length, gap)[0] for gap in gaps]
        whole = gaps if self.fim else [replace(gap, suffix_tokens=[]) for gap in gaps]
        seen = [truncate_context(gap, length, self.longest) for gap, length in zip(whole, lengths, strict=True)]
        rows = [(self._prompt(gap), length) for gap, length in zip(seen, lengths, strict=True)]
        seeds = [sampling_seed(self.config.seed, gap.index, trial, length) for gap, length in rows]
        return with_cuts(self.model.fill(rows, self.config.temperature, seeds), whole, seen)

    def _prompt(self, gap: InfillExample) -> InfillExample:
        """What the model goes on from, as the prefix of a text without a suffix."""
        if not self.fim:
            return gap
        return replace(gap, prefix_tokens=self.fim.prompt(gap.prefix_tokens, gap.suffix_tokens), suffix_tokens=[])


class ModelFreeBaseline:
    """What a function writes: baselines without a model."""

    name, weights = NO_MODEL, ""

    def __init__(
        self,
        sampler: str,
        gaps: dict[str, list[InfillExample]],
        write: Callable[[InfillExample, str, int], str],
        trials: int | None = None,
    ):
        """write: the text for a gap of a group in a trial. trials: 1 if it writes the same in all."""
        self.samplers, self.gaps, self.write, self.trials = (sampler,), gaps, write, trials

    def fill(self, gaps: list[InfillExample], group: str, variant: Variant, trial: int) -> list[InfillResult]:
        """What the function writes for each of some texts."""
        return [InfillResult(self.write(gap, group, trial), [], 0, 0) for gap in gaps]


def with_cuts(
    filled: Sequence[InfillResult], whole: Sequence[InfillExample], seen: Sequence[InfillExample]
) -> list[InfillResult]:
    """Fillings that tell how many tokens of their whole texts were not seen."""
    cuts = [gap.context_length - part.context_length for gap, part in zip(whole, seen, strict=True)]
    return [replace(one, cut=cut) for one, cut in zip(filled, cuts, strict=True)]


def check_lengths(
    gaps: dict[str, list[InfillExample]], lengths: dict[str, GapLengthPolicy], choices: Sequence[str]
) -> None:
    """InputError when a text's gap has none of the lengths of one of the choices."""
    for group, some in gaps.items():
        for choice in dict.fromkeys(choices):
            for gap in some:
                lengths[group].tried(choice, gap)


def variants_of(system: InfillSystem, config: InfillEvalConfig) -> list[Variant]:
    """The variants that this system does."""
    others = (CAUSAL, *config.baselines)
    if system.samplers is None:
        return [variant for variant in config.variants() if variant.sampler not in others]
    return [variant for variant in config.variants() if variant.sampler in system.samplers]
