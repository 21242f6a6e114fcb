"""Evaluation of a file of completions in the official format, made by any model: pass@k and static measures."""

from dataclasses import dataclass
from pathlib import Path

from asarm.evals.code.config import WANTED_K, TestRunnerConfig
from asarm.evals.code.data import SPLITS, check_split, official_file, problems_of_files, read_completions
from asarm.evals.code.metrics import STATIC_MEASURES, from_problem, pass_rates, static_measures, suffix_rates
from asarm.evals.code.sandbox.isolation import describe_isolation
from asarm.evals.code.verdicts import run_tests
from asarm.evals.stats import grouped, item_means, mean_with_interval
from asarm.evals.tables import counted, markdown_table, too_few, with_interval
from asarm.utils.cluster.processes import this_shard
from asarm.utils.config import check_at_least, nested, option
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_text
from asarm.utils.folder_lock import locked
from asarm.utils.jsonl import write_json_lines


@dataclass
class CompletionsConfig:
    """Settings of an evaluation of completions."""

    test_runner: TestRunnerConfig = nested(TestRunnerConfig)
    split: str = option("single-line", f"benchmark that the completions are of: {', '.join(SPLITS)}")
    data_dir: str = option("", "folder with the official jsonl.gz files, if OpenAI's package does not have them")
    problems: str = option("", "file of problems in the official format, instead of the official one")
    max_items: int = option(0, "number of problems, from the file's first on, that the completions are of; 0 is all")
    output_dir: str = option("", "folder for verdicts and results; the default is that of the completions")

    def __post_init__(self) -> None:
        check_split(self.split)
        check_at_least(self, max_items=0)


def evaluate_completions(path: str | Path, config: CompletionsConfig) -> str:
    """Run the completions of a file with their tests. Returns the result as Markdown.

    Verdicts are appended to FILE_verdicts.jsonl, from which an interrupted run goes on; the completions with `passed`
    and `result` are written to FILE_results.jsonl, as OpenAI's runner does. Raises InputError as `read_completions`,
    and when another process is doing the same.
    """
    if (shard := this_shard()).count > 1:
        raise InputError(f"programs are run by one process, not {shard.count}: --workers says how many run at a time")
    path = Path(path)
    source = config.problems or official_file(config.split, config.data_dir)
    problems = problems_of_files([source], [config.split])[config.split][: config.max_items or None]
    by_task = read_completions(path, config.split, problems)
    folder = Path(config.output_dir) if config.output_dir else path.parent

    completed = [(problem, completion) for problem in problems for completion in by_task[problem.task_id]]
    programs = [(problem.task_id, problem.program(completion)) for problem, completion in completed]
    with locked(folder / path.name, beside=True):
        verdicts = run_tests(folder / f"{path.name}_verdicts.jsonl", programs, config.test_runner)
        rows = [
            {"task_id": problem.task_id, "completion": completion} | verdicts[sha256_of_text(program)]._asdict()
            for (problem, completion), (_, program) in zip(completed, programs, strict=True)
        ]
        write_json_lines(folder / f"{path.name}_results.jsonl", rows)
    lines = [
        {"index": problem.index} | row | static_measures(problem, completion) | from_problem(problem, completion)
        for row, (problem, completion) in zip(rows, completed, strict=True)
    ]
    return _as_markdown(config.split, lines)


def _as_markdown(split: str, lines: list[dict]) -> str:
    """What the sandbox guards, how much was run, and a table. lines: one a completion."""
    ((_, group),) = grouped(lines, ()).items()
    found = pass_rates(group, WANTED_K)
    for rate in suffix_rates(group).values():
        found[f"pass@1 of {rate['n']} with a suffix"] = rate
    for key, label in STATIC_MEASURES.items():
        found[label] = mean_with_interval(list(item_means(group, key).values()))
    about = f"{split}: {counted(len(group), 'problems')}, {counted(len(lines), 'completions')}; shares in %"
    few = too_few(len(group), "problems") or "In brackets 95 % bootstrap intervals."
    table = markdown_table(list(found), [[with_interval(one, 1, 100) for one in found.values()]])
    return f"{describe_isolation()}.\n\n{about}. {few}\n\n{table}"
