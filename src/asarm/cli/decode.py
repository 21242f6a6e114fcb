"""Decode real text speculatively and sequentially, and compare: `python -m asarm decode [tiny|paper] [options]`.

A preset gives the defaults, and every option overrides it. `paper` (the default): released weights, WikiText, 700 texts
of 512 tokens, GPT-2-large for perplexities; wants a GPU and the Hub. It decodes as the paper does; `--samplers
sequential fused` takes fewer evaluations. `tiny`: the bundled model and the sample text of this repository, about two
minutes on two cores, offline.
"""

from typing import Any

from asarm.cli.presets import BUNDLED_SETS, parse_with_preset, run
from asarm.evals.decoding.config import DecodingEvalConfig
from asarm.evals.decoding.run import DecodingEvaluation

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"revision": "nlp"},
    "tiny": {
        "model": "tiny-text",
        "text": str(BUNDLED_SETS / "sample_text.txt"),
        "samplers": ["sequential", "fused", "assd-self", "assd-ngram"],
        "length": 128,
        "num_texts": 24,
        "k_sweep_texts": 8,
        "batch_size": 8,
        "judge": "self",
        "device": "cpu",
    },
}


def parse_arguments(arguments: list[str]) -> DecodingEvalConfig:
    """The settings: the dataclass's defaults, changed by the preset, changed by the options."""
    return parse_with_preset(DecodingEvalConfig, "decode", __doc__, PRESETS, arguments)


def main(arguments: list[str]) -> None:
    run(parse_arguments(arguments), DecodingEvaluation, "texts, metrics and plots")
