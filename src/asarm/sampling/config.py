"""Settings of the samplers, and samplers by the names that evaluations give them."""

from dataclasses import dataclass, replace
from typing import Any

from asarm.tokenization.transforms import Transforms, check_temperature
from asarm.utils.config import check, option


@dataclass
class SamplerConfig(Transforms):
    """How targets are filled (see `asarm.sampling`), and how their distributions are transformed first."""

    sampler: str = option("assd", "sequential, assd, fused or parallel (the last is not exact)")
    draft: str = option(
        "self", "what drafts: self (the model, by its draft head if it has one), blind (without), ngram (assd: a table)"
    )
    coupling: str = option(
        "", "verification rule for drafts: residual, block or gumbel; the default is residual, and gumbel with adaptive"
    )
    k: int = option(5, "tokens drafted in one iteration of assd or fused")
    alternatives: int = option(
        0, "fused: other tokens verified instead of the first draft; one less for the second, and so on"
    )
    adaptive: bool = option(
        False, "draft as many tokens, k at most, as are measured to be fastest; the text does not depend on it"
    )
    steps: int = option(16, "network calls of the parallel sampler")
    draft_temperature: float | None = option(
        None, "divides the logits that tokens are drafted from by the model; the default is the temperature"
    )
    tolerance: float = option(0.0, "accept with min(1, p/q + tolerance); above 0 the distribution is no longer exact")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.coupling = self.coupling or ("gumbel" if self.adaptive else "residual")
        check(self.sampler in ("sequential", "assd", "fused", "parallel"), f"unknown sampler {self.sampler!r}")
        check(self.draft in ("self", "ngram", "blind"), f"unknown draft {self.draft!r}: choose self, ngram or blind")
        known = ("residual", "block", "gumbel")
        check(self.coupling in known, f"unknown coupling {self.coupling!r}: choose {', '.join(known)}")
        check(
            self.sampler != "fused" or self.draft != "ngram",
            "fused drafts by the model, self or blind; ngram is for sampler assd",
        )
        check(self.k >= 1, f"k must be at least 1, not {self.k}")
        check(0 <= self.alternatives <= 16, f"alternatives must lie in 0..16, not {self.alternatives}")
        check(
            not self.adaptive or self.sampler in ("assd", "fused"),
            f"adaptive is for samplers that draft, assd and fused, not {self.sampler}",
        )
        check(
            not self.adaptive or self.coupling == "gumbel",
            f"adaptive needs the gumbel coupling, not {self.coupling}: under others the text would depend on the clock",
        )
        check(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        if self.draft_temperature is not None:
            check_temperature("draft_temperature", self.draft_temperature)
        check(0 <= self.tolerance <= 1, f"tolerance must lie in [0, 1], not {self.tolerance}")
        check(
            self.tolerance == 0 or self.coupling == "residual",
            "tolerance needs the residual coupling: gumbel accepts by equality, block whole prefixes at a time",
        )


# What each one changes in the settings that all variants of an evaluation share.
NAMED_SAMPLERS: dict[str, dict[str, Any]] = {
    "sequential": {"sampler": "sequential"},
    "assd-self": {"sampler": "assd", "draft": "self"},
    "assd-ngram": {"sampler": "assd", "draft": "ngram"},
    "assd-adaptive": {"sampler": "assd", "coupling": "gumbel", "adaptive": True},
    "fused": {"sampler": "fused"},
    "fused-blind": {"sampler": "fused", "draft": "blind"},
    "fused-adaptive": {"sampler": "fused", "coupling": "gumbel", "adaptive": True},
    "parallel": {"sampler": "parallel"},
}


def named_sampler(name: str, shared: SamplerConfig, **changes: Any) -> SamplerConfig:
    """The settings of one of NAMED_SAMPLERS, on top of the shared ones, with changes."""
    return replace(shared, **(NAMED_SAMPLERS[name] | changes))
