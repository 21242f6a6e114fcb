"""Verdicts on completed programs, kept in a file: programs are run whose verdict under a time limit is not known yet.

A line of the file holds a verdict, the seconds that the program took and the limit under which it was run. So it tells
the verdict under other limits, too, unless the program had timed out and the limit is now higher.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from asarm.evals.code.config import TestRunnerConfig
from asarm.evals.code.sandbox.isolation import describe_isolation
from asarm.evals.code.sandbox.runner import TIMED_OUT, Limits, Verdict, check_all
from asarm.utils.cluster.processes import own_cpus
from asarm.utils.files import sha256_of_text
from asarm.utils.jsonl import read_json_lines, write_json_lines
from asarm.utils.progress import update_seconds

logger = logging.getLogger(__name__)


def verdict_under(line: dict, timeout: float) -> Verdict | None:
    """What a line of a file of verdicts tells about a limit of `timeout` seconds; None if that is nothing."""
    if "timeout" not in line:  # written before lines had it
        return None
    if line["result"] == TIMED_OUT and timeout > line["timeout"]:
        return None
    return Verdict(line["passed"], line["result"]) if line["seconds"] <= timeout else Verdict(False, TIMED_OUT)


def read_verdicts(path: Path, timeout: float) -> dict[str, Verdict]:
    """{SHA-256 of the program: verdict} under a limit of `timeout` seconds, of all programs of which it is known."""
    verdicts: dict[str, Verdict] = {}
    for line in read_json_lines(path):
        if verdict := verdict_under(line, timeout):
            verdicts.setdefault(line["program_sha256"], verdict)
    return verdicts


def known_verdicts(paths: Iterable[Path], timeout: float) -> dict[str, Verdict]:
    """Those of `read_verdicts` of several files together."""
    return {digest: verdict for path in paths for digest, verdict in read_verdicts(path, timeout).items()}


def run_tests(
    path: Path, programs: Iterable[tuple[str, str]], runner: TestRunnerConfig, others: Iterable[Path] = ()
) -> dict[str, Verdict]:
    """Verdicts on programs that end with their tests, as `read_verdicts` gives them.

    Each different program whose verdict is not known is run once, and its verdict appended when it ends.

    Args:
        path: the file of verdicts, JSON lines.
        programs: (task id, source) of each.
        others: files of other processes, whose verdicts hold, too.
    """
    timeout = runner.timeout
    verdicts = known_verdicts((*others, path), timeout)
    different = {sha256_of_text(program): (task_id, program) for task_id, program in programs}
    todo = [(digest, *some) for digest, some in different.items() if digest not in verdicts]
    if not todo:
        return verdicts
    write_json_lines(path, read_json_lines(path))  # without the torn line of an interrupted run
    logger.info("%s", describe_isolation())
    logger.info("%d of %d different programs to run", len(todo), len(different))
    finished = check_all([program for _, _, program in todo], Limits(seconds=timeout), runner.workers or own_cpus())
    with path.open("a", encoding="utf-8") as file:
        for index, verdict, seconds in tqdm(finished, total=len(todo), unit="program", mininterval=update_seconds()):
            digest, task_id, _ = todo[index]
            line = {"task_id": task_id, "program_sha256": digest, **verdict._asdict()}
            line |= {"seconds": seconds, "timeout": timeout}
            file.write(json.dumps(line) + "\n")
            file.flush()
            verdicts[digest] = verdict
    return verdicts
