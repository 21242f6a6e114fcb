"""Train a draft head for a model: `python -m asarm draft_head --model M --train_files FILES --output_dir FOLDER`.

The folder gets a copy of the model with the head. Its texts have the same law and the same exact likelihoods; `fused`
finds the head there and drafts with it, so that more drafts are accepted.
"""

from transformers import HfArgumentParser

from asarm.training.draft_head import DraftHeadConfig, train_draft_head
from asarm.utils.logging_setup import quiet_libraries


def main(arguments: list[str]) -> None:
    parser = HfArgumentParser(DraftHeadConfig, prog="asarm draft_head", description=__doc__)
    (config,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    quiet_libraries()
    results = train_draft_head(config)
    print("held-out acceptance of drafts that lack 1, 2, ... tokens before their places")
    for name, values in results.items():
        print(f"{name:8} the head: " + " ".join(f"{value:.3f}" for value in values))
