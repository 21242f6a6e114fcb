"""A file of completions in the official format, from whatever model, judged: pass@k and what else can be said."""

from dataclasses import dataclass
from pathlib import Path

from asarm.evals.code.config import WANTED_K, JudgingConfig
from asarm.evals.code.data import SPLITS, check_split, official_file, problems_of_files, read_completions
from asarm.evals.code.metrics import facts, pass_rates, share
from asarm.evals.code.report import TRUE_OF_ALL
from asarm.evals.code.sandbox.runner import describe_isolation
from asarm.evals.code.verdicts import judge
from asarm.evals.stats import grouped, item_means
from asarm.evals.tables import markdown_table, with_interval
from asarm.utils.config import option
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_text
from asarm.utils.jsonl import write_json_lines


@dataclass
class JudgeConfig(JudgingConfig):
    """What is judged."""

    split: str = option("single-line", f"benchmark that the completions are of: {', '.join(SPLITS)}")
    data_dir: str = option("", "folder with the official jsonl.gz files, if OpenAI's package does not have them")
    problems: str = option("", "file of problems in the official format, instead of the official one")
    max_items: int = option(0, "the completions are of so many problems, from the file's first on; 0 is all")
    output_dir: str = option("", "folder for verdicts and results; the default is that of the completions")

    def __post_init__(self):
        self.check_judging()
        check_split(self.split)
        if self.max_items < 0:
            raise InputError(f"max_items must be at least 0, not {self.max_items}")


def judge_file(path: str | Path, config: JudgeConfig) -> str:
    """Run the completions of a file with their tests, and tell the result as Markdown.

    Verdicts are appended to FILE_verdicts.jsonl, from which an interrupted run goes on; the completions with `passed`
    and `result` are written to FILE_results.jsonl, as OpenAI's runner does. InputError as in `read_completions`.
    """
    path = Path(path)
    source = config.problems or official_file(config.split, config.data_dir)
    problems = problems_of_files([source], [config.split])[config.split][: config.max_items or None]
    completions = read_completions(path, config.split, problems)
    folder = Path(config.output_dir) if config.output_dir else path.parent

    done = [(problem, completion) for problem in problems for completion in completions[problem.task_id]]
    programs = [(problem.task_id, problem.program(completion)) for problem, completion in done]
    verdicts = judge(folder / f"{path.name}_verdicts.jsonl", programs, config.timeout, config.workers)
    lines = [
        {"index": problem.index, "task_id": problem.task_id, "completion": completion}
        | verdicts[sha256_of_text(program)]._asdict()
        for (problem, completion), (_, program) in zip(done, programs, strict=True)
    ]
    rows = [{name: value for name, value in line.items() if name != "index"} for line in lines]
    write_json_lines(folder / f"{path.name}_results.jsonl", rows)

    known = [line | facts(problem, line["completion"]) for line, (problem, _) in zip(lines, done, strict=True)]
    ((_, group),) = grouped(known, ()).items()
    found = pass_rates(group, WANTED_K)
    for key, label in TRUE_OF_ALL.items():
        found[label] = share(list(item_means(group, key).values()))
    about = f"{config.split}: {len(group)} problems, {len(lines)} completions; shares in %, 95 % bootstrap intervals"
    table = markdown_table(list(found), [[with_interval(one, 1, 100) for one in found.values()]])
    return f"{describe_isolation()}.\n\n{about}.\n\n{table}"
