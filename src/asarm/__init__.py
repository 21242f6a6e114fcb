"""Any-subset autoregressive language models and any-subset speculative decoding."""

from asarm.config import SamplerConfig
from asarm.models.bundled import resolve_model
from asarm.models.load import load_model
from asarm.objective import log_prob
from asarm.sampling import SampleResult, sample
from asarm.text import decode, load_tokenizer, parse_gaps

__all__ = [
    "SampleResult",
    "SamplerConfig",
    "decode",
    "load_model",
    "load_tokenizer",
    "log_prob",
    "parse_gaps",
    "resolve_model",
    "sample",
]
