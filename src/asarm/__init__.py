"""Any-subset autoregressive language models and any-subset speculative decoding."""

from asarm.filling.infiller import Filling, Infiller, Partial, infill
from asarm.models.load import AsArm, load
from asarm.objective.loss import log_prob
from asarm.sampling import SampleResult, sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import escape_gaps, parse_gaps

__all__ = [
    "AsArm",
    "Filling",
    "InfillBatch",
    "Infiller",
    "Partial",
    "SampleResult",
    "SamplerConfig",
    "TextCodec",
    "escape_gaps",
    "infill",
    "load",
    "log_prob",
    "parse_gaps",
    "sample",
]
