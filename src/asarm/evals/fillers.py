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

from asarm.codec import TextCodec
from asarm.evals.fill import CausalModel, Filled, fill, search
from asarm.evals.gapped import Gapped, shortened
from asarm.evals.infill_config import (
    CAUSAL,
    MEDIAN,
    ORACLE,
    PREFIX_ONLY,
    SEARCH,
    InfillEvalConfig,
    Variant,
    fixed_length,
)
from asarm.evals.runs import digest, sampling_seed
from asarm.models.compiled import compiled_for_decoding
from asarm.models.ready import load_ready

NO_MODEL = "none"


class Lengths:
    """How many tokens the gaps of one group take, for each choice of `gap_length`, with one model's tokens."""

    def __init__(self, every: Sequence[Gapped], longest: int | None, propose: Callable[[Gapped], list[int]]):
        """every: all texts of the group, so that what is learned does not depend on how many of them are used.
        longest: the model's positions. propose: the lengths that a search tries."""
        self.longest, self.propose = longest, propose
        self.median = round(float(np.median([len(gap.gold_tokens) for gap in every])))

    def tried(self, choice: str, gap: Gapped) -> list[int]:
        """The lengths that are tried for a text: one, but with search. InputError if the model takes none of them."""
        if choice == SEARCH:
            return self.fitting(gap, self.propose(gap))
        length = {ORACLE: len(gap.gold_tokens), MEDIAN: self.median}.get(choice) or fixed_length(choice)
        return self.fitting(gap, [length])

    def fitting(self, gap: Gapped, lengths: list[int]) -> list[int]:
        """Those that the model takes, the others left out or made shorter; InputError if it takes none."""
        raise NotImplementedError


# All texts, cut with a model's tokens, and what is known of the lengths of their gaps: both by group. Takes the
# model's positions, too (None: no limit).
Cut = Callable[[TextCodec, int | None], tuple[dict[str, list[Gapped]], dict[str, Lengths]]]


class Filler(Protocol):
    """gaps: texts by group. weights: digest of a model's weights. samplers: what its variants are called, or None for
    those that every any-subset model does. trials: at most so many are worth while."""

    name: str
    weights: str
    gaps: dict[str, list[Gapped]]
    samplers: tuple[str, ...] | None
    trials: int | None

    def fill(self, gaps: list[Gapped], group: str, variant: Variant, trial: int) -> list[Filled]:
        """The gaps of some texts, filled as the variant says."""


class AnySubset:
    """An any-subset model with its texts, cut with its tokens."""

    samplers, trials = None, None

    def __init__(self, name: str, config: InfillEvalConfig, cut: Cut, device: torch.device):
        model, _, revision = name.partition("@") if not Path(name).exists() else (name, "", "")
        loaded, self.codec = load_ready(model, revision or None, config.white_space, device, config.dtype)
        self.name, self.config = name, config
        self.weights = digest(loaded.state_dict().values())
        self.model = compiled_for_decoding(loaded, config.compile)
        self.longest = getattr(loaded.config, "n_positions", None)
        self.gaps, self.lengths = cut(self.codec, self.longest)
        choices = [variant.gap_length for variant in variants_of(self, config)]
        check_lengths(self.gaps, self.lengths, choices)

    def fill(self, gaps: list[Gapped], group: str, variant: Variant, trial: int) -> list[Filled]:
        """The gaps of some texts, filled as the variant says."""
        tried = [self.lengths[group].tried(variant.gap_length, gap) for gap in gaps]
        sees_suffix = variant.sampler != PREFIX_ONLY
        whole = gaps if sees_suffix else [replace(gap, suffix_tokens=[]) for gap in gaps]
        # All lengths that are tried for a text see the same of it, so that their scores can be compared.
        seen = [shortened(gap, max(lengths), self.longest) for gap, lengths in zip(whole, tried, strict=True)]

        def seed(gap: Gapped, length: int) -> int:
            return sampling_seed(self.config.seed, gap.index, trial, length)

        if variant.gap_length == SEARCH:
            size = self.config.batch_size
            filled = search(self.model, self.codec, seen, tried, variant.config, seed, size)
        else:
            rows = [(gap, lengths[0]) for gap, lengths in zip(seen, tried, strict=True)]
            filled = fill(self.model, self.codec, rows, variant.config, [seed(*row) for row in rows], sees_suffix)
        return with_cuts(filled, whole, seen)


class Causal:
    """A left-to-right model with its texts, cut with its tokens."""

    samplers, trials = (CAUSAL,), None

    def __init__(self, name: str, config: InfillEvalConfig, cut: Cut, device: torch.device, use_fim: bool = False):
        """use_fim: show it the suffix, too, if it was trained to fill in the middle."""
        self.name, self.config = name, config
        self.model = CausalModel(name, device)
        self.fim = self.model.fim if use_fim else None
        self.weights = digest(self.model.model.state_dict().values())
        self.longest = self.model.longest
        if self.longest is not None:  # room for its marks
            self.longest -= len(self.model.begin) + len(self.fim or ())
        self.gaps, self.lengths = cut(self.model.codec, self.longest)
        check_lengths(self.gaps, self.lengths, [ORACLE])

    def fill(self, gaps: list[Gapped], group: str, variant: Variant, trial: int) -> list[Filled]:
        """The gaps of some texts, each of the length of the right text in this model's tokens."""
        lengths = [self.lengths[group].tried(variant.gap_length, gap)[0] for gap in gaps]
        whole = gaps if self.fim else [replace(gap, suffix_tokens=[]) for gap in gaps]
        seen = [shortened(gap, length, self.longest) for gap, length in zip(whole, lengths, strict=True)]
        rows = [(self._prompt(gap), length) for gap, length in zip(seen, lengths, strict=True)]
        seeds = [sampling_seed(self.config.seed, gap.index, trial, length) for gap, length in rows]
        return with_cuts(self.model.fill(rows, self.config.temperature, seeds), whole, seen)

    def _prompt(self, gap: Gapped) -> Gapped:
        """What the model goes on from, as the prefix of a text without a suffix."""
        if not self.fim:
            return gap
        return replace(gap, prefix_tokens=self.fim.prompt(gap.prefix_tokens, gap.suffix_tokens), suffix_tokens=[])


class Written:
    """What a function writes: baselines without a model."""

    name, weights = NO_MODEL, ""

    def __init__(
        self,
        sampler: str,
        gaps: dict[str, list[Gapped]],
        write: Callable[[Gapped, str, int], str],
        trials: int | None = None,
    ):
        """write: the text for a gap of a group in a trial. trials: 1 if it writes the same in all."""
        self.samplers, self.gaps, self.write, self.trials = (sampler,), gaps, write, trials

    def fill(self, gaps: list[Gapped], group: str, variant: Variant, trial: int) -> list[Filled]:
        """What the function writes for each of some texts."""
        return [Filled(self.write(gap, group, trial), [], 0, 0) for gap in gaps]


def with_cuts(filled: Sequence[Filled], whole: Sequence[Gapped], seen: Sequence[Gapped]) -> list[Filled]:
    """Fillings that tell how many tokens of their whole texts were not seen."""
    cuts = [gap.around - part.around for gap, part in zip(whole, seen, strict=True)]
    return [replace(one, cut=cut) for one, cut in zip(filled, cuts, strict=True)]


def check_lengths(gaps: dict[str, list[Gapped]], lengths: dict[str, Lengths], choices: Sequence[str]) -> None:
    """InputError when a text's gap has none of the lengths of one of the choices."""
    for group, some in gaps.items():
        for choice in dict.fromkeys(choices):
            for gap in some:
                lengths[group].tried(choice, gap)


def variants_of(filler: Filler, config: InfillEvalConfig) -> list[Variant]:
    """The variants that this filler does."""
    others = (CAUSAL, *config.baselines)
    if filler.samplers is None:
        return [variant for variant in config.variants() if variant.sampler not in others]
    return [variant for variant in config.variants() if variant.sampler in filler.samplers]
