"""Settings that all evaluations share, and the variants that they compare."""

from dataclasses import dataclass
from typing import Any

from asarm.models.config import LoadingOptions
from asarm.sampling.config import SamplerConfig
from asarm.sampling.registry import named_sampler
from asarm.utils.config import check_at_least, nested, option
from asarm.utils.errors import InputError

PER_VARIANT = ("sampler", "draft", "adaptive")  # settings of a sampler that each variant has of its own


@dataclass
class EvalConfig:
    """Settings of an evaluation of a model. sampling: settings of the samplers that all variants share."""

    loading: LoadingOptions = nested(LoadingOptions)
    sampling: SamplerConfig = nested(SamplerConfig, hidden=PER_VARIANT)
    seed: int = option(0, "seeds all that is drawn")
    output_dir: str = option("", "folder for the results; a run that was interrupted there goes on")

    def __post_init__(self) -> None:
        check_at_least(self, seed=0)
        if not self.output_dir:
            raise InputError("no output_dir given")

    def sampler_config(self, name: str, **changes: Any) -> SamplerConfig:
        """The settings of one of the named samplers, with changes."""
        return named_sampler(name, self.sampling, **changes)


@dataclass
class Variant:
    """One way to decode or to fill gaps.

    name: in results and tables. sampler: its name without k, steps or gap length. gap_length: how the lengths of gaps
    are found; "" where that means nothing. max_items: how many items, from the first on, are decoded; None for all.
    """

    name: str
    sampler: str
    config: SamplerConfig
    gap_length: str = ""
    max_items: int | None = None
