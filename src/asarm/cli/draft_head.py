"""Train a draft head for a model: `python -m asarm draft_head --model M --train_files FILES --output_dir FOLDER`.

The folder gets a copy of the model with the head. Its samples have the same distribution and its likelihoods are the
same; the `fused` sampler finds the head there and drafts with it, so that more drafts are accepted.
"""

from typing import Any, cast

from asarm.training.draft_head import DraftHeadConfig, train_draft_head
from asarm.utils.config import OptionParser, from_options, options_of
from asarm.utils.logging_setup import quiet_libraries


def main(arguments: list[str]) -> None:
    """Run the command with its command-line arguments."""
    parser = OptionParser(cast(Any, options_of(DraftHeadConfig)), prog="asarm draft_head", description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    config = from_options(DraftHeadConfig, **vars(options))
    quiet_libraries()
    results = train_draft_head(config)
    print("held-out acceptance of the first, second, ... draft of a window, if those before it were accepted")
    for name, where in (("acceptance", "after a token"), ("acceptance_at_start", "at the start of a gap")):
        print(f"{where}:", " ".join(f"{value:.3f}" for value in results[name]))
