"""Verdicts on completed programs: those that have not been run yet are run; all are kept in a file."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from asarm.evals.code.sandbox.isolation import describe_isolation
from asarm.evals.code.sandbox.runner import Limits, Verdict, check_all
from asarm.utils.files import sha256_of_text
from asarm.utils.jsonl import read_json_lines, write_json_lines
from asarm.utils.progress import update_seconds

logger = logging.getLogger(__name__)


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """{SHA-256 of the program: verdict}, of all programs that have been run."""
    return {line["program_sha256"]: Verdict(line["passed"], line["result"]) for line in read_json_lines(path)}


def run_tests(path: Path, programs: Iterable[tuple[str, str]], timeout: float, workers: int) -> dict[str, Verdict]:
    """Verdicts on programs that end with their tests, as `read_verdicts` gives them.

    Each different program that is not in the file yet is run once, and its verdict appended when it ends.

    Args:
        path: the file of verdicts, JSON lines.
        programs: (task id, source) of each.
        timeout: seconds for each program.
        workers: programs run at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, read_json_lines(path))  # without the torn line of an interrupted run
    verdicts = read_verdicts(path)
    different = {sha256_of_text(program): (task_id, program) for task_id, program in programs}
    todo = [(digest, *some) for digest, some in different.items() if digest not in verdicts]
    if not todo:
        return verdicts
    logger.info("%s", describe_isolation())
    logger.info("%d of %d different programs to run", len(todo), len(different))
    finished = check_all([program for _, _, program in todo], Limits(seconds=timeout), workers)
    with path.open("a", encoding="utf-8") as file:
        for index, verdict in tqdm(finished, total=len(todo), unit="program", mininterval=update_seconds()):
            digest, task_id, _ = todo[index]
            line = {"task_id": task_id, "program_sha256": digest, **verdict._asdict()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            verdicts[digest] = verdict
    return verdicts
