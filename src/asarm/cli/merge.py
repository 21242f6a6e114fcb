"""Merge the results that several processes left in one folder: `python -m asarm merge FOLDER`.

The last process of an evaluation does that itself. Where it was ended before it could, this makes the same files,
tables and plots, without a model or a GPU. Give it in the folder in which the evaluation was started, if its command
named files of problems there. Nothing is changed while results are missing, or while a process is at work in FOLDER.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asarm.cli.presets import show
from asarm.evals.code.config import CodeConfig
from asarm.evals.code.run import CodeEvaluation
from asarm.evals.decoding.config import DecodingEvalConfig
from asarm.evals.decoding.rescore import Rescoring, RescoringConfig
from asarm.evals.decoding.run import DecodingEvaluation
from asarm.evals.language.config import LanguageEvalConfig
from asarm.evals.language.run import LanguageEvaluation
from asarm.evals.result_files import MANIFEST, ResultFiles, check_all_done, read_manifest
from asarm.evals.resumable import Evaluation
from asarm.evals.stories.config import StoriesConfig
from asarm.evals.stories.run import StoriesEvaluation
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from asarm.utils.folder_lock import locked
from asarm.utils.logging_setup import quiet_libraries

EVALUATIONS: dict[str, Callable[[dict[str, Any]], Evaluation]] = {
    "decode": lambda options: DecodingEvaluation(from_options(DecodingEvalConfig, **options)),
    "judge": lambda options: Rescoring(options.pop("results"), from_options(RescoringConfig, **options)),
    "stories": lambda options: StoriesEvaluation(from_options(StoriesConfig, **options)),
    "code": lambda options: CodeEvaluation(from_options(CodeConfig, **options)),
    "language": lambda options: LanguageEvaluation(from_options(LanguageEvalConfig, **options)),
}


def main(arguments: list[str]) -> None:
    """Run the command with its command-line arguments."""
    parser = ArgumentParser(prog="asarm merge", description=__doc__)
    parser.add_argument("folder", type=Path, help="output_dir of an evaluation by several processes")
    folder = parser.parse_args(arguments).folder
    quiet_libraries()
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    with locked(folder):
        about, plan = read_manifest(folder)
        results = ResultFiles(folder, plan)
        check_all_done(results, about["processes"])
        try:
            evaluation = EVALUATIONS[about["command"]](about["options"] | {"output_dir": str(folder)})
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder / MANIFEST} is of another version of asarm ({error})") from error
        show(evaluation, evaluation.merged_report(results), "results")
