"""The evaluation on code: completions between prompt and suffix, the results of their tests, and costs.

Every problem, variant and sample gives one line of `samples.jsonl`, which is a function of them and of the seed, so
that an interrupted run goes on where it stopped. Completions are written in the format of OpenAI's package, too. Where
running them is allowed, verdicts are appended to `verdicts.jsonl`, by program and time limit, which may change from run
to run. Tables, plot and page are made from these files.
"""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from asarm.evals.code.config import WANTED_K, CodeConfig
from asarm.evals.code.data import Problem, official_file, problems_of_files
from asarm.evals.code.examples import CodeExample
from asarm.evals.code.metrics import from_problem, static_measures, summarise
from asarm.evals.code.report import code_page, code_summary, code_table, plot_code
from asarm.evals.code.sandbox.isolation import describe_isolation
from asarm.evals.code.systems import code_systems
from asarm.evals.code.verdicts import known_verdicts, read_verdicts, run_tests
from asarm.evals.infilling.infill import InfillResult
from asarm.evals.infilling.run import InfillEvaluation
from asarm.evals.infilling.systems import InfillSystem
from asarm.evals.result_files import ResultFiles, all_files, file_of, files_of_shards, merge_lines
from asarm.evals.resumable import Unit
from asarm.evals.tables import counted
from asarm.utils.cluster.processes import this_shard
from asarm.utils.files import file_name, sha256_of_file, sha256_of_text
from asarm.utils.jsonl import write_json_lines

logger = logging.getLogger(__name__)
NOT_RUN = "pass@k is not measured: the programs that were completed are run with --allow_code_execution only"
RUN_BEFORE = "the programs that were completed were run before"
Problems = dict[str, list[Problem]]  # by split


class CodeEvaluation(InfillEvaluation):
    """Groups are splits of the benchmark."""

    command, group_field, trial_field = "code", "split", "sample"
    may_change = ("allow_code_execution", "workers", "timeout", "data_dir", "problems")

    def __init__(self, config: CodeConfig):
        self.code = config
        self.files = problem_files(config)
        self.problems = problems_of_files(self.files, config.splits)
        self.verdicts = Path(config.output_dir) / "verdicts.jsonl"
        super().__init__(config, config.samples_per_task)

    def load_systems(self) -> list[InfillSystem]:
        return code_systems(self.code, self.problems)

    def settings(self) -> dict[str, Any]:
        settings = {name: value for name, value in super().settings().items() if name not in self.may_change}
        return settings | {"problems_sha256": [sha256_of_file(path) for path in self.files]}

    def describe(self, todo: int, total: int) -> str:
        counts = {split: min(len(some), self.config.max_items or len(some)) for split, some in self.problems.items()}
        problems = ", ".join(f"{split}: {counted(count, 'problems')}" for split, count in counts.items())
        return f"{problems}; samples of each: {self.trials}; {super().describe(todo, total)}"

    def line(self, unit: Unit, example: CodeExample, result: InfillResult) -> dict:
        return {
            "task_id": example.problem.task_id,
            "cut": result.cut,
            **static_measures(example.problem, result.text),
            "completion": result.text,
        }

    def finish_shard(self, lines: list[dict]) -> None:
        """Run the tests of this process's completions, if that is allowed: all processes do so at a time."""
        if self.code.allow_code_execution:
            programs, others = programs_of(lines, self.problems), all_files(self.verdicts)
            run_tests(file_of(self.verdicts, this_shard()), programs, self.code.test_runner, others)

    def left(self, results: ResultFiles) -> str:
        left = super().left(results)
        if left or results.shard.count == 1 or not self.code.allow_code_execution:
            return left
        programs = programs_of([line for lines in results.done().values() for line in lines], self.problems)
        known = known_verdicts(all_files(self.verdicts), self.code.test_runner.timeout)
        count = len({sha256_of_text(program) for _, program in programs} - known.keys())
        return f"the tests of {count} programs" if count else ""

    def merge(self, results: ResultFiles) -> None:
        super().merge(results)
        if files_of_shards(self.verdicts):
            merge_lines(self.verdicts)

    def report(self) -> dict:
        """Write completions, run their tests if that is allowed, and write metrics.json, table.md, code.png and
        samples.html. Returns the metrics."""
        lines = self.lines()
        write_completions(self.output, lines)
        programs = programs_of(lines, self.problems)
        runner = self.code.test_runner
        if self.code.allow_code_execution:
            run_tests(self.verdicts, programs, runner)
        verdicts = read_verdicts(self.verdicts, runner.timeout)
        for line, (_, program) in zip(lines, programs, strict=True):
            line |= from_problem(self.problems[line["split"]][line["index"]], line["completion"])
            if verdict := verdicts.get(sha256_of_text(program)):
                line |= verdict._asdict()
        about_tests = RUN_BEFORE if all("passed" in line for line in lines) else NOT_RUN
        if self.code.allow_code_execution:
            about_tests = describe_isolation()
        metrics = summarise(lines, WANTED_K) | {"judging": about_tests, "timeout": runner.timeout}
        page = code_page(lines, self.problems)
        metrics = self.write_results(metrics, table_md=code_table(metrics), samples_html=page)
        plot_code(self.output)
        return metrics

    def summary(self, metrics: dict) -> str:
        return code_summary(metrics)


def problem_files(config: CodeConfig) -> list[Path]:
    """The files of problems of a run."""
    if config.problems:
        return [Path(path) for path in config.problems]
    return [official_file(split, config.data_dir) for split in config.splits]


def programs_of(lines: list[dict], problems: Problems) -> list[tuple[str, str]]:
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


def evaluate(config: CodeConfig) -> dict:
    """Complete what is left to complete, run the tests if that is allowed, and report. Returns the metrics."""
    return CodeEvaluation(config).complete()
