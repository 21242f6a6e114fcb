"""Any-subset autoregressive language models and any-subset speculative decoding."""

from asarm.models.load import AsArm, load
from asarm.objective.loss import log_prob
from asarm.sampling import SampleResult, sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import parse_gaps

__all__ = [
    "AsArm",
    "InfillBatch",
    "SampleResult",
    "SamplerConfig",
    "TextCodec",
    "load",
    "log_prob",
    "parse_gaps",
    "sample",
]
