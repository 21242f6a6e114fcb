"""Code with a gap: does what a model writes between prompt and suffix pass the tests, and at what cost?

Every problem, variant and sample gives one line of `samples.jsonl`, which is a function of them and of the seed, so
that an interrupted run goes on where it stopped. Completions are written in the format of OpenAI's package, too. Where
running them is allowed, verdicts are appended to `verdicts.jsonl`, by program. Tables, plot and page are made from
these files.
"""

import json
import logging
import re
from collections import defaultdict
from pathlib import Path

from asarm.evals.code.config import WANTED_K, CodeConfig
from asarm.evals.code.data import Problem, official_file, problems_of_files
from asarm.evals.code.examples import CodeExample
from asarm.evals.code.metrics import facts, summarise
from asarm.evals.code.report import code_page, code_table, plot_code
from asarm.evals.code.sandbox.runner import describe_isolation
from asarm.evals.code.systems import code_systems
from asarm.evals.code.verdicts import judge, read_verdicts
from asarm.evals.infilling.infill import InfillResult
from asarm.evals.infilling.run import Unit, fill_gaps, settings_of
from asarm.evals.resumable import claim
from asarm.models.load import pick_device
from asarm.utils.files import sha256_of_file, sha256_of_text, write_json, write_text
from asarm.utils.jsonl import read_json_lines, write_json_lines

logger = logging.getLogger(__name__)
UNIT_FIELDS = ("model", "split", "variant", "sample", "batch")
NOT_JUDGED = "pass@k is not measured: the programs that were completed are run with --allow_code_execution only"


Problems = dict[str, list[Problem]]  # by split


def problem_files(config: CodeConfig) -> list[Path]:
    """The files of problems of a run."""
    if config.problems:
        return [Path(path) for path in config.problems]
    return [official_file(split, config.data_dir) for split in config.splits]


def code_line(unit: Unit, gap: CodeExample, filled: InfillResult) -> dict:
    """What stands in a line of `samples.jsonl` besides costs. cut: tokens of prompt and suffix that the model did not
    see, for they were too many."""
    return {
        "split": unit.group,
        "sample": unit.trial,
        "task_id": gap.problem.task_id,
        "cut": filled.cut,
        **facts(gap.problem, filled.text),
        "completion": filled.text,
    }


def evaluate(config: CodeConfig) -> dict:
    """Complete what is left to complete, judge what is left to judge if that is allowed, and report. Returns the
    metrics."""
    output, device = Path(config.output_dir), pick_device(config.device)
    files = problem_files(config)
    problems = problems_of_files(files, config.splits)
    systems = code_systems(config, problems, device)
    settings = settings_of(config, systems, "allow_code_execution", "workers", "data_dir", "problems")
    claim(output, settings | {"problems_sha256": [sha256_of_file(path) for path in files]})
    for split, some in problems.items():
        count = min(len(some), config.max_items or len(some))
        logger.info("%s: %d problems; samples of each: %d", split, count, config.samples_per_task)
    fill_gaps(output / "samples.jsonl", config, systems, config.samples_per_task, UNIT_FIELDS, code_line)
    lines = read_json_lines(output / "samples.jsonl")
    write_completions(output, lines)
    about_judging = NOT_JUDGED
    if config.allow_code_execution:
        judge(output / "verdicts.jsonl", programs(lines, problems), config.timeout, config.workers)
        about_judging = describe_isolation()
    return report(output, lines, problems, about_judging)


def programs(lines: list[dict], problems: Problems) -> list[tuple[str, str]]:
    """(task id, program) of every line of a run."""
    found = [(problems[line["split"]][line["index"]], line["completion"]) for line in lines]
    return [(problem.task_id, problem.program(completion)) for problem, completion in found]


def write_completions(output: Path, lines: list[dict]) -> None:
    """The completions of each split, model and variant as OpenAI's package reads them: completions/SPLIT/MODEL/VARIANT
    .jsonl, in the order of the problems."""
    files = defaultdict(list)
    for line in lines:
        files[line["split"], file_name(line["model"]), file_name(line["variant"])].append(line)
    for (split, model, variant), some in files.items():
        some.sort(key=lambda line: (line["index"], line["sample"]))
        rows = [{"task_id": line["task_id"], "completion": line["completion"]} for line in some]
        write_json_lines(output / "completions" / split / model / f"{variant}.jsonl", rows)


def file_name(name: str) -> str:
    """A model's or variant's name as that of a file."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-100:]


def report(output: Path, lines: list[dict], problems: Problems, about_judging: str) -> dict:
    """metrics.json, table.md, code.png and samples.html of a finished run, from the lines of its `samples.jsonl`, its
    verdicts and the problems.

    about_judging: a line on how programs were run, or why they were not.
    """
    about = json.loads((output / "config.json").read_text(encoding="utf-8"))
    verdicts = read_verdicts(output / "verdicts.jsonl")
    for line, (_, program) in zip(lines, programs(lines, problems), strict=True):
        if verdict := verdicts.get(sha256_of_text(program)):
            line |= verdict._asdict()
    metrics = summarise(lines, WANTED_K) | {"judging": about_judging} | about
    write_json(output / "metrics.json", metrics)
    page = code_page(lines, problems)
    for name, text in (("table.md", code_table(metrics)), ("samples.html", page)):
        write_text(output / name, text)
    plot_code(output)
    return metrics
