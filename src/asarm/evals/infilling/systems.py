"""Infilling systems: any-subset models, causal models, and baselines that need no model.

Each holds the examples made with its own tokens, by group (what tables are made of: tasks, splits), and a policy of
gap lengths. What it writes is a function of the seed, the example, the trial and the number of tokens, not of the
batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from asarm.evals.config import Variant
from asarm.evals.infilling.causal import CausalModel
from asarm.evals.infilling.config import (
    CAUSAL,
    MEDIAN,
    MODEL,
    NO_MODEL,
    ORACLE,
    PREFIX_ONLY,
    SEARCH,
    InfillEvalConfig,
    fixed_length,
)
from asarm.evals.infilling.example import InfillExample, truncate_context
from asarm.evals.infilling.infill import InfillResult, fill, search
from asarm.evals.resumable import sampling_seed
from asarm.models.compiled import compiled_for_decoding
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_tensors


class GapLengthPolicy:
    """How many tokens the gaps of one group take, for each choice of `gap_length`, with one model's tokens."""

    def __init__(
        self,
        every: Sequence[InfillExample],
        longest: int | None,
        propose: Callable[[InfillExample], list[int]],
        capacity: int,
    ):
        """every: all examples of the group, so that what is estimated does not depend on how many are used.
        longest: the model's positions. propose: the lengths that a search tries. capacity: the longest gap that the
        model may choose."""
        self.longest, self.propose, self.capacity = longest, propose, capacity
        self.median = round(float(np.median([len(example.reference_tokens) for example in every])))

    def lengths(self, choice: str, example: InfillExample) -> list[int]:
        """The lengths that are tried for an example: one, but with search. Raises InputError if the model takes none of
        them."""
        if choice == SEARCH:
            return self.fitting(example, self.propose(example))
        if choice == MODEL:  # and the token that tells the model so
            return [length - 1 for length in self.fitting(example, [self.capacity + 1])]
        known = {ORACLE: len(example.reference_tokens), MEDIAN: self.median}
        length = known[choice] if choice in known else fixed_length(choice)
        return self.fitting(example, [length or 0])

    def fitting(self, example: InfillExample, lengths: list[int]) -> list[int]:
        """Those that the model takes, the others left out or made shorter. Raises InputError if it takes none."""
        raise NotImplementedError


Examples = Mapping[str, Sequence[InfillExample]]  # by group
# Makes all examples with a model's tokens, and the policy of gap lengths of each group. Takes the model's positions,
# too (None: no limit).
MakeExamples = Callable[[TextCodec, int | None], tuple[Examples, Mapping[str, GapLengthPolicy]]]


class InfillSystem(Protocol):
    """What fills gaps.

    examples: by group. weights: digest of a model's weights. samplers: names of its variants; None for those that every
    any-subset model has. trials: the largest useful number of trials, None for no limit.
    """

    name: str
    weights: str
    examples: Examples
    samplers: tuple[str, ...] | None
    trials: int | None

    def fill(self, examples: list[InfillExample], group: str, variant: Variant, trial: int) -> list[InfillResult]:
        """The gaps of some examples, filled as the variant says."""


class AnySubsetSystem:
    """An any-subset model with its examples."""

    samplers: tuple[str, ...] | None = None
    trials: int | None = None

    def __init__(self, name: str, config: InfillEvalConfig, make_examples: MakeExamples):
        """name: of the model, or name@revision."""
        loaded, self.codec = config.load_model(name)
        self.name, self.config = name, config
        self.weights = sha256_of_tensors(loaded.state_dict().values())
        self.model = compiled_for_decoding(loaded, config.loading.compile)
        self.longest = getattr(loaded.config, "n_positions", None)
        self.never = [] if config.special_tokens else self.codec.textless()
        self.examples, self.policies = make_examples(self.codec, self.longest)
        choices = [variant.gap_length for variant in variants_of(self, config)]
        if MODEL in choices and None in (loaded.config.gap_end_token_id, self.codec.gap_end_token_id):
            raise InputError(f"{name} has no token that ends a gap: leave out gap_length model")
        check_lengths(self.examples, self.policies, choices)

    def fill(self, examples: list[InfillExample], group: str, variant: Variant, trial: int) -> list[InfillResult]:
        """The gaps of some examples, filled as the variant says."""
        tried = [self.policies[group].lengths(variant.gap_length, example) for example in examples]
        whole = without_suffixes(examples) if variant.sampler == PREFIX_ONLY else examples
        gap_end = self.codec.gap_end_token_id if variant.gap_length == MODEL else None
        settings = replace(variant.config, suppress_tokens=[*variant.config.suppress_tokens, *self.never])
        mark = gap_end is not None
        # All lengths that are tried for an example see the same context, so that their scores can be compared.
        seen = [
            truncate_context(example, max(lengths) + mark, self.longest)
            for example, lengths in zip(whole, tried, strict=True)
        ]

        def seed(example: InfillExample, length: int) -> int:
            return sampling_seed(self.config.seed, example.index, trial, length)

        if variant.gap_length == SEARCH:
            filled = search(self.model, self.codec, seen, tried, settings, seed, self.config.batch_size)
        else:
            rows = [(example, lengths[0]) for example, lengths in zip(seen, tried, strict=True)]
            filled = fill(self.model, self.codec, rows, settings, [seed(*row) for row in rows], gap_end)
        return with_cuts(filled, whole, seen)


class CausalSystem:
    """A causal model with its examples; one that was trained to fill in the middle is shown the suffix, too."""

    samplers: tuple[str, ...] | None = (CAUSAL,)
    trials: int | None = None

    def __init__(self, name: str, config: InfillEvalConfig, make_examples: MakeExamples, device: torch.device):
        self.name, self.config = name, config
        self.model = CausalModel(name, device)
        self.fim = self.model.fim
        self.weights = sha256_of_tensors(self.model.model.state_dict().values())
        self.longest = self.model.longest
        if self.longest is not None:  # room for the special tokens around prefix and suffix
            self.longest -= len(self.model.begin) + len(self.fim or ())
        self.examples, self.policies = make_examples(self.model.codec, self.longest)
        check_lengths(self.examples, self.policies, [ORACLE])

    def fill(self, examples: list[InfillExample], group: str, variant: Variant, trial: int) -> list[InfillResult]:
        """The gaps of some examples, each of the length of the reference in this model's tokens."""
        lengths = [self.policies[group].lengths(variant.gap_length, example)[0] for example in examples]
        whole = examples if self.fim else without_suffixes(examples)
        seen = [truncate_context(example, length, self.longest) for example, length in zip(whole, lengths, strict=True)]
        rows = [(self._prompt(example), length) for example, length in zip(seen, lengths, strict=True)]
        seeds = [sampling_seed(self.config.seed, example.index, trial, length) for example, length in rows]
        return with_cuts(self.model.fill(rows, self.config.sampling, seeds), whole, seen)

    def _prompt(self, example: InfillExample) -> InfillExample:
        """What the model goes on from, as the prefix of an example without a suffix."""
        if not self.fim:
            return example
        prompt = self.fim.prompt(example.prefix_tokens, example.suffix_tokens)
        return replace(example, prefix_tokens=prompt, suffix_tokens=[])


class ModelFreeBaseline:
    """What a function writes, without a model."""

    name, weights = NO_MODEL, ""

    def __init__(
        self,
        sampler: str,
        examples: Examples,
        write: Callable[[Any, str, int], str],
        trials: int | None = None,
    ):
        """write: the text for the gap of an example of a group in a trial. trials: 1 if it is the same in all."""
        self.samplers: tuple[str, ...] | None = (sampler,)
        self.examples, self.write, self.trials = examples, write, trials

    def fill(self, examples: list[InfillExample], group: str, variant: Variant, trial: int) -> list[InfillResult]:
        """What the function writes for each of some examples."""
        return [InfillResult(self.write(example, group, trial), [], 0, 0) for example in examples]


def without_suffixes(examples: Sequence[InfillExample]) -> list[InfillExample]:
    """The same examples as a left-to-right model sees them."""
    return [replace(example, suffix_tokens=[]) for example in examples]


def with_cuts(
    filled: Sequence[InfillResult], whole: Sequence[InfillExample], seen: Sequence[InfillExample]
) -> list[InfillResult]:
    """The results, each with the number of tokens of its whole example that the model did not see."""
    cuts = [example.context_length - part.context_length for example, part in zip(whole, seen, strict=True)]
    return [replace(one, cut=cut) for one, cut in zip(filled, cuts, strict=True)]


def check_lengths(examples: Examples, policies: Mapping[str, GapLengthPolicy], choices: Sequence[str]) -> None:
    """Raise InputError when a gap can have none of the lengths of one of the choices."""
    for group, some in examples.items():
        for choice in dict.fromkeys(choices):
            for example in some:
                policies[group].lengths(choice, example)


def variants_of(system: InfillSystem, config: InfillEvalConfig) -> list[Variant]:
    """The variants that a system has."""
    others = (CAUSAL, *config.baselines)
    if system.samplers is None:
        return [variant for variant in config.variants() if variant.sampler not in others]
    return [variant for variant in config.variants() if variant.sampler in system.samplers]
