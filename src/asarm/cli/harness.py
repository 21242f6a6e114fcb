"""lm-evaluation-harness with our models in it: `python -m asarm harness [its options]`, such as

python -m asarm harness --model asarm --model_args pretrained=tiny-text --tasks FOLDER/my_task.yaml --device cpu
"""

import sys

from asarm.utils.errors import InputError
from asarm.utils.logging_setup import quiet_libraries


def main(arguments: list[str]) -> None:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness is missing ({error}): pip install 'asarm[harness]', or lm-eval"
        ) from error
    import asarm.evals.language.lm_eval_adapter  # noqa: F401  registers the model

    quiet_libraries()
    before = sys.argv
    sys.argv = ["asarm harness", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
