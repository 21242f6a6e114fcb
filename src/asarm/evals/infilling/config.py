"""What a run that fills gaps does: the options that stories and code share, and the variants that they make."""

from dataclasses import dataclass, field
from typing import ClassVar

from asarm.evals.config import EvalConfig
from asarm.sampling.config import SamplerConfig
from asarm.sampling.registry import SAMPLERS
from asarm.utils.config import option
from asarm.utils.errors import InputError

PREFIX_ONLY, CAUSAL = "prefix-only", "causal"
ORACLE, SEARCH, MEDIAN, FIXED = "oracle", "search", "median", "fixed:"


@dataclass
class InfillEvalConfig(EvalConfig):
    """Which gaps are filled by what. Evaluations say what `samplers` there are and which are the default."""

    baselines: ClassVar[tuple[str, ...]] = ()  # those that need no model

    steps: int = field(default=16, init=False)  # set for each variant, and no option here

    models: list[str] = option(
        [], "bundled models, folders or Hub repositories; name@revision for a branch, tag or commit"
    )
    model: str = option("", "one model, instead of `models`")
    revision: str | None = option(None, "branch, tag or commit of `model`")
    max_items: int = option(0, "how many texts, from the file's first on; 0 is all")
    samplers: list[str] = option(list(SAMPLERS), "variants")
    parallel_steps: list[int] = option([1, 4, 16], "numbers of steps of the parallel sampler")
    causal: str = option("", "a causal language model that is given the prefix, such as gpt2; empty for none")
    gap_length: list[str] = option(
        [ORACLE],
        "tokens of a gap: oracle (those of the right text), search (proposed from the visible text, "
        "chosen by joint density), fixed:N, or median (of the right texts of all)",
    )
    length_sampler: str = option("", "sampler for other lengths than oracle; the default is the first assd one")
    proposals: int = option(8, "most lengths that search tries for a gap")
    batch_size: int = option(32, "texts filled together")

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(max_items=0, batch_size=1, proposals=1)
        self.check_choices("sampler", self.samplers, [*SAMPLERS, PREFIX_ONLY, *self.baselines])
        self.check_choices("length_sampler", [self.length_sampler], ["", *SAMPLERS])
        if self.revision and not self.model:
            raise InputError("revision belongs to --model: write name@revision in --models")
        if not self.model_names():
            raise InputError("no model given")
        self.variants()

    def model_names(self) -> list[str]:
        """The models, each as name or name@revision."""
        one = f"{self.model}@{self.revision}" if self.revision else self.model
        return list(dict.fromkeys([one] if one else self.models))

    def variants(self) -> list["Variant"]:
        """All samplers with the right length, then one sampler with each other choice of length, then baselines."""
        found = []
        for gap_length in dict.fromkeys(self.gap_length):
            fixed_length(gap_length)
            if gap_length == ORACLE:
                samplers = dict.fromkeys(name for name in self.samplers if name in SAMPLERS)
            else:
                samplers = [self.length_sampler] if self.length_sampler else self._usual_length_sampler()
            found += [one for sampler in samplers for one in self._variants(sampler, gap_length)]
        if PREFIX_ONLY in self.samplers:
            found += self._variants(PREFIX_ONLY, ORACLE)
        if self.causal:
            found += self._variants(CAUSAL, ORACLE)
        wanted = (name for name in self.baselines if name in self.samplers)
        return found + [Variant(name, name, "", self.sampler_config("sequential")) for name in wanted]

    def _variants(self, sampler: str, gap_length: str) -> list["Variant"]:
        behind = "" if gap_length == ORACLE else f" {gap_length}"
        if sampler == "parallel":
            steps = dict.fromkeys(self.parallel_steps)
            some = {f"parallel-{count}{behind}": self.sampler_config(sampler, steps=count) for count in steps}
        else:  # prefix-only and causal go from left to right
            some = {f"{sampler}{behind}": self.sampler_config(sampler if sampler in SAMPLERS else "sequential")}
        return [Variant(name, sampler, gap_length, config) for name, config in some.items()]

    def _usual_length_sampler(self) -> list[str]:
        """The first assd sampler that is wanted, or else the first sampler; none if none is wanted."""
        wanted = [name for name in self.samplers if name in SAMPLERS]
        return [name for name in wanted if name.startswith("assd")][:1] or wanted[:1]


@dataclass
class Variant:
    """One way to fill gaps. sampler: one of the choices, or causal. gap_length: as in the options; "" has none."""

    name: str
    sampler: str
    gap_length: str
    config: SamplerConfig


def fixed_length(choice: str) -> int | None:
    """N of `fixed:N`, None for the other choices of a gap's length; InputError for anything else."""
    if choice in (ORACLE, SEARCH, MEDIAN):
        return None
    number = choice.removeprefix(FIXED)
    if not (choice.startswith(FIXED) and number.isdecimal() and int(number) >= 1):
        raise InputError(f"unknown gap_length {choice!r}: choose oracle, search, median, or fixed:N with N at least 1")
    return int(number)
