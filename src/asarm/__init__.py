"""Any-subset autoregressive language models and any-subset speculative decoding."""

from asarm.codec import TextCodec
from asarm.config import SamplerConfig
from asarm.models.load import AsArm, load
from asarm.objective import log_prob
from asarm.sampling import SampleResult, sample
from asarm.text import parse_gaps

__all__ = [
    "AsArm",
    "SampleResult",
    "SamplerConfig",
    "TextCodec",
    "load",
    "log_prob",
    "parse_gaps",
    "sample",
]
