"""Settings that the evaluations on stories and code share, and the variants that they make."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from asarm.evals.config import PER_VARIANT, ModelsConfig, Variant
from asarm.sampling.config import NAMED_SAMPLERS, SamplerConfig
from asarm.utils.config import check_at_least, check_choices, nested, option
from asarm.utils.errors import InputError

PREFIX_ONLY, CAUSAL = "prefix-only", "causal"
NO_MODEL = "none"  # what lines of baselines that need no model have in the field model
ORACLE, SEARCH, MEDIAN, MODEL, FIXED = "oracle", "search", "median", "model", "fixed:"


@dataclass
class InfillEvalConfig(ModelsConfig):
    """Which gaps are filled, and by what. Subclasses name their baselines and the default of `samplers`."""

    baselines: ClassVar[tuple[str, ...]] = ()  # those that need no model

    # `parallel_steps` says for each variant what `steps` would say for all.
    sampling: SamplerConfig = nested(SamplerConfig, hidden=(*PER_VARIANT, "steps"))
    max_items: int = option(0, "how many texts, from the file's first on; 0 is all")
    samplers: list[str] = option(list(NAMED_SAMPLERS), "variants")
    parallel_steps: list[int] = option([1, 4, 16], "numbers of steps of the parallel sampler")
    causal: str = option(
        "",
        "a causal language model that is given the prefix, such as gpt2, and the suffix, too, if it has marks to fill "
        "in the middle; empty for none",
    )
    gap_length: list[str] = option(
        [ORACLE],
        "tokens of a gap: oracle (those of the reference), search (proposed from the visible text, "
        "chosen by joint density), model (which ends the gap itself), fixed:N, or median (of the references of all)",
    )
    gap_capacity: int = option(24, "the most tokens of a gap with gap_length model")
    length_sampler: str = option("", "sampler for other lengths than oracle; the default is the first assd one")
    special_tokens: bool = option(
        False, "any-subset models may write tokens that are no text, such as the end of a document, into gaps"
    )
    proposals: int = option(8, "the largest number of lengths that search tries for a gap")
    batch_size: int = option(32, "texts filled together")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, max_items=0, batch_size=1, proposals=1, gap_capacity=1)
        check_choices("sampler", self.samplers, [*NAMED_SAMPLERS, PREFIX_ONLY, *self.baselines])
        check_choices("length_sampler", [self.length_sampler], ["", *NAMED_SAMPLERS])
        self.variants()

    def variants(self) -> list[Variant]:
        """All samplers with the reference's length, then one sampler with each other choice of length, then
        baselines."""
        found = []
        for gap_length in dict.fromkeys(self.gap_length):
            fixed_length(gap_length)
            for sampler in self._samplers_for(gap_length):
                found += self._variants(sampler, gap_length)
        if PREFIX_ONLY in self.samplers:
            found += self._variants(PREFIX_ONLY, ORACLE)
        if self.causal:
            found += self._variants(CAUSAL, ORACLE)
        wanted = (name for name in self.baselines if name in self.samplers)
        return found + [Variant(name, name, self.sampler_config("sequential")) for name in wanted]

    def _samplers_for(self, gap_length: str) -> Iterable[str]:
        """All samplers for the oracle's lengths; for others one: `length_sampler`, the first assd one, or the first."""
        wanted = list(dict.fromkeys(name for name in self.samplers if name in NAMED_SAMPLERS))
        if gap_length == ORACLE:
            return wanted
        if self.length_sampler:
            return [self.length_sampler]
        return [name for name in wanted if name.startswith("assd")][:1] or wanted[:1]

    def _variants(self, sampler: str, gap_length: str) -> list[Variant]:
        suffix = "" if gap_length == ORACLE else f" {gap_length}"
        if sampler == "parallel":
            steps = dict.fromkeys(self.parallel_steps)
            some = {f"parallel-{count}{suffix}": self.sampler_config(sampler, steps=count) for count in steps}
        else:  # prefix-only and causal go from left to right
            some = {f"{sampler}{suffix}": self.sampler_config(sampler if sampler in NAMED_SAMPLERS else "sequential")}
        return [Variant(name, sampler, config, gap_length) for name, config in some.items()]


def fixed_length(choice: str) -> int | None:
    """N of `fixed:N`, None for the other choices of a gap's length. Raises InputError for anything else."""
    if choice in (ORACLE, SEARCH, MEDIAN, MODEL):
        return None
    number = choice.removeprefix(FIXED)
    if not (choice.startswith(FIXED) and number.isdecimal() and int(number) >= 1):
        raise InputError(
            f"unknown gap_length {choice!r}: choose oracle, search, median, model, or fixed:N with N at least 1"
        )
    return int(number)
