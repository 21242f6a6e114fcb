"""Completed programs judged by running them: the verdicts in a file to which they are appended, and that is kept."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from asarm.evals.code.sandbox.runner import Limits, Verdict, check_all, describe_isolation
from asarm.utils.files import sha256_of_text
from asarm.utils.jsonl import read_json_lines, write_json_lines
from asarm.utils.progress import update_seconds

logger = logging.getLogger(__name__)


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """{digest of the program: verdict}, of all programs that have been judged."""
    return {line["program_sha256"]: Verdict(line["passed"], line["result"]) for line in read_json_lines(path)}


def judge(path: Path, programs: Iterable[tuple[str, str]], timeout: float, workers: int) -> dict[str, Verdict]:
    """Verdicts on programs, each given as (task id, text), as `read_verdicts` gives them.

    Those that are in the file already are taken from there; the others are run, each different one once, and appended
    as they end. timeout: seconds for each. workers: programs run at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, read_json_lines(path))  # without the torn line of an interrupted run
    known = read_verdicts(path)
    different = {sha256_of_text(program): (task_id, program) for task_id, program in programs}
    todo = [(digest, *some) for digest, some in different.items() if digest not in known]
    if not todo:
        return known
    logger.info("%s", describe_isolation())
    logger.info("%d of %d different programs to judge", len(todo), len(different))
    found = check_all([program for _, _, program in todo], Limits(seconds=timeout), workers)
    with path.open("a", encoding="utf-8") as file:
        for index, verdict in tqdm(found, total=len(todo), unit="program", mininterval=update_seconds()):
            digest, task_id, _ = todo[index]
            line = {"task_id": task_id, "program_sha256": digest, **verdict._asdict()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            known[digest] = verdict
    return known
