"""Decode real text speculatively and sequentially, and compare: `python -m asarm decode [tiny|paper] [options]`.

A preset gives the defaults, and every option overrides it. `paper` (the default): released weights, WikiText, 700 texts
of 512 tokens, GPT-2-large as the judge; wants a GPU and the Hub. `tiny`: the bundled model and the sample text of this
repository, about two minutes on two cores, offline.
"""

from pathlib import Path

from transformers import HfArgumentParser

from asarm.cli.quiet import quiet_libraries
from asarm.errors import InputError
from asarm.evals.decoding import DecodingEvalConfig, evaluate

SAMPLE_TEXT = Path(__file__).resolve().parents[3] / "eval_datasets" / "sample_text.txt"
PRESETS = {
    "paper": {"revision": "nlp"},
    "tiny": {
        "model": "tiny-text",
        "text": str(SAMPLE_TEXT),
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
    named = bool(arguments) and not arguments[0].startswith("-")
    preset, options = (arguments[0], arguments[1:]) if named else ("paper", arguments)
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
    parser = HfArgumentParser(
        DecodingEvalConfig,
        prog="asarm decode",
        description=__doc__,
        usage="%(prog)s [tiny|paper] [options], or --help",
    )
    parser.set_defaults(output_dir=f"results/decode-{preset}", **PRESETS[preset])
    config = parser.parse_args_into_dataclasses(options, look_for_args_file=False)[0]
    given = {option.split("=")[0] for option in options}
    if "--model" in given and "--revision" not in given:
        config.revision = None  # the preset's belongs to the preset's model
    return config


def main(arguments: list[str]) -> None:
    config = parse_arguments(arguments)
    quiet_libraries()
    evaluate(config)
    output = Path(config.output_dir)
    print((output / "table.md").read_text(encoding="utf-8"))
    print(f"texts, metrics and plots: {output}")
