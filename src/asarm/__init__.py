"""Any-subset autoregressive language models and any-subset speculative decoding."""

from asarm.config import SamplerConfig
from asarm.models.load import load
from asarm.objective import log_prob
from asarm.sampling import SampleResult, sample
from asarm.text import decode, parse_gaps

__all__ = [
    "SampleResult",
    "SamplerConfig",
    "decode",
    "load",
    "log_prob",
    "parse_gaps",
    "sample",
]
