"""Samplers by the names that evaluations give them."""

from dataclasses import replace
from typing import Any

from asarm.sampling.config import SamplerConfig

# What each one changes in the settings that all variants of an evaluation share.
NAMED_SAMPLERS: dict[str, dict[str, Any]] = {
    "sequential": {"sampler": "sequential"},
    "assd-self": {"sampler": "assd", "draft": "self"},
    "assd-ngram": {"sampler": "assd", "draft": "ngram"},
    "fused": {"sampler": "fused"},
    "fused-blind": {"sampler": "fused", "draft": "blind"},
    "fused-adaptive": {"sampler": "fused", "coupling": "gumbel", "adaptive": True},
    "parallel": {"sampler": "parallel"},
}


def named_sampler(name: str, shared: SamplerConfig, **changes: Any) -> SamplerConfig:
    """The settings of one of NAMED_SAMPLERS, on top of the shared ones, with changes."""
    return replace(shared, **(NAMED_SAMPLERS[name] | changes))
