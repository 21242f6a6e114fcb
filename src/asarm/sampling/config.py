"""Settings of the samplers."""

from dataclasses import dataclass

from asarm.utils.config import check, option

# Beyond these, logits divided by the temperature are no longer numbers of float32, or all the same.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-9, 1e9


@dataclass
class SamplerConfig:
    """How targets are filled. See `asarm.sampling`."""

    sampler: str = option("assd", "sequential, assd, fused or parallel (the last is not exact)")
    draft: str = option(
        "self", "what drafts: self (the model, by its draft head if it has one), blind (without), ngram (assd: a table)"
    )
    coupling: str = option(
        "", "verification rule for drafts: residual, block or gumbel; the default is residual, and gumbel with adaptive"
    )
    k: int = option(5, "tokens drafted in one iteration of assd or fused")
    adaptive: bool = option(
        False, "fused drafts as many tokens, k at most, as it measures to be fastest; the text does not depend on it"
    )
    steps: int = option(16, "network calls of the parallel sampler")
    temperature: float = option(1.0, "divides the logits")
    draft_temperature: float | None = option(
        None, "divides the logits that tokens are drafted from by the model; the default is the temperature"
    )
    tolerance: float = option(0.0, "accept with min(1, p/q + tolerance); above 0 the distribution is no longer exact")

    def __post_init__(self) -> None:
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
        check(not self.adaptive or self.sampler == "fused", "adaptive needs the fused sampler")
        check(
            not self.adaptive or self.coupling == "gumbel",
            f"adaptive needs the gumbel coupling, not {self.coupling}: under others the text would depend on the clock",
        )
        check(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        for name in ("temperature", "draft_temperature"):
            value = getattr(self, name)
            is_possible = value is None or LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE
            check(is_possible, f"{name} must lie in [{LOWEST_TEMPERATURE:g}, {HIGHEST_TEMPERATURE:g}], not {value}")
        check(0 <= self.tolerance <= 1, f"tolerance must lie in [0, 1], not {self.tolerance}")
        check(
            self.tolerance == 0 or self.coupling == "residual",
            "tolerance needs the residual coupling: gumbel accepts by equality, block whole prefixes at a time",
        )
