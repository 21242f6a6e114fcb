"""Problems of HumanEval-Infilling and completions of them: readers of the formats of OpenAI's package.

A problem is a Python function with a gap; a program is the function with its gap filled, followed by its tests.
"""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path

from asarm.data.rows import read_rows
from asarm.utils.errors import InputError

PACKAGE = "human-eval-infilling"
REPOSITORY = "https://github.com/openai/human-eval-infilling"
REPOSITORY_URL = re.compile(r"github\.com[/:]openai/human-eval-infilling(\.git)?/?$")


@dataclass(frozen=True)
class Split:
    """One of the benchmarks of HumanEval-Infilling.

    prefix: how its task ids begin. files: the names that its file may have. masked: what is missing, in words.
    """

    name: str
    prefix: str
    files: tuple[str, ...]
    masked: str


def _split(name: str, prefix: str, masked: str, *other_files: str) -> Split:
    """A split with its official file name first."""
    return Split(name, prefix, (f"HumanEval-{prefix}.jsonl.gz", *other_files), masked)


SPLITS = {
    split.name: split
    for split in (
        _split("single-line", "SingleLineInfilling", "one line"),
        _split("multi-line", "MultiLineInfilling", "one line or more"),
        # OpenAI's reader asks for other names than its folder has.
        _split("random-span", "RandomSpanInfilling", "a random stretch", "HumanEval-RandomSpan.jsonl.gz"),
        _split(
            "random-span-light", "RandomSpanInfillingLight", "a random stretch", "HumanEval-RandomSpanLight.jsonl.gz"
        ),
    )
}


@dataclass(frozen=True)
class Problem:
    """A problem, its fields named as in the official files. index: its number in the file, from 0."""

    index: int
    task_id: str
    entry_point: str
    prompt: str
    suffix: str
    canonical_solution: str
    test: str

    def source(self, completion: str) -> str:
        """The function with its gap filled."""
        return self.prompt + completion + self.suffix

    def program(self, completion: str) -> str:
        """The program whose run tests a completion, the same text as OpenAI's runner runs."""
        return f"{self.source(completion)}\n{self.test}\ncheck({self.entry_point})"


FIELDS = [field.name for field in fields(Problem) if field.name != "index"]


def check_split(name: str) -> Split:
    """The split of that name. Raises InputError if there is none."""
    if name not in SPLITS:
        raise InputError(f"unknown split {name!r}: choose from {', '.join(SPLITS)}")
    return SPLITS[name]


def read_problems(path: str | Path) -> list[Problem]:
    """All problems of a file, in its order.

    A solution may be empty, as some of OpenAI's random spans are. Raises InputError as `read_rows` does, and for task
    ids that occur twice.
    """
    rows = [row.fields for row in read_rows(path, FIELDS)]
    task_id, count = Counter(row["task_id"] for row in rows).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path} has task_id {task_id} {count} times")
    return [Problem(index, **{field: row[field] for field in FIELDS}) for index, row in enumerate(rows)]


def split_of(task_id: str) -> str | None:
    """The split that a task id names, None if it is not written like an official one."""
    prefix = task_id.partition("/")[0]
    return next((split.name for split in SPLITS.values() if split.prefix == prefix), None)


def problems_of_files(paths: Sequence[str | Path], splits: Sequence[str]) -> dict[str, list[Problem]]:
    """{split: its problems}, for each of `splits`, from files that hold one split each; no `splits` means all files.

    A file is of the split that its task ids name, or else of the only one in `splits`. Raises InputError when ids name
    several splits or none, when two files are of one split, or none is of one of `splits`.
    """
    found: dict[str, list[Problem]] = {}
    for path in paths:
        problems = read_problems(path)
        named = {split_of(problem.task_id) for problem in problems}
        if len(named) > 1:
            raise InputError(f"{path} holds problems of several splits: {', '.join(sorted(map(str, named)))}")
        split = named.pop() or (splits[0] if len(splits) == 1 else None)
        if split is None:
            raise InputError(
                f"the task ids of {path} do not tell its split: give one of {', '.join(SPLITS)} as --split"
            )
        if split in found:
            raise InputError(f"two files of problems of {split}: give one, or run them apart")
        found[split] = problems
    for split in splits:
        if split not in found:
            names = ", ".join(Path(path).name for path in paths)
            raise InputError(f"no problems of {split}: {names} holds those of {', '.join(found)}")
    return {split: found[split] for split in splits or found}


def official_file(split: str, folder: str | Path) -> Path:
    """The official file of a split, from `folder` or from OpenAI's package. Raises InputError when there is none."""
    check_package()
    names = check_split(split).files
    folders = [Path(folder), *package_folders()]
    for candidate in folders:
        for name in names:
            if (candidate / name).is_file():
                return candidate / name
    bare = " (the package that is installed came without its data)" if len(folders) > 1 else ""
    raise InputError(
        f"no problems of {split}: put {names[0]} from the folder data of {REPOSITORY} into {folder}, or pip install -e "
        f"a clone of it, or name a file with --problems{bare}"
    )


def check_package() -> None:
    """Raise InputError when a package of that name is installed that is not OpenAI's: the one on PyPI is a stranger's.

    OpenAI's is installed from its repository, and pip records that; a package from an index has no such record.
    """
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    cloned = "vcs_info" in origin and REPOSITORY_URL.search(origin.get("url", ""))
    if not (cloned or "dir_info" in origin):
        raise InputError(
            f"the package {PACKAGE} that is installed does not come from OpenAI's repository: the one on PyPI is an "
            f"empty upload of a stranger. pip uninstall {PACKAGE}, and pip install -e a clone of {REPOSITORY}"
        )


def package_folders() -> list[Path]:
    """The folders of problems of OpenAI's package, if it is installed from a clone. Nothing of it is imported."""
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = (found.submodule_search_locations if found else None) or []
    return [Path(folder).parent / "data" for folder in folders]


def read_completions(path: str | Path, split: str, problems: Sequence[Problem]) -> dict[str, list[str]]:
    """{task id: completions} of a file in the official format, equally many for each of the problems.

    A completion is what it is: one with lone surrogates is no program, and fails.

    Raises InputError as `read_rows` does, for task ids of another split or of none, and for problems that have fewer or
    more completions than others.
    """
    found: dict[str, list[str]] = {problem.task_id: [] for problem in problems}
    for _, row in read_rows(path, ("task_id", "completion"), as_written=True):
        task_id = row["task_id"]
        if task_id not in found:
            other = split_of(task_id)
            reason = f"is of {other}" if other not in (None, split) else "is none of its problems"
            raise InputError(f"{path} is not of {split}: {task_id} {reason}")
        found[task_id].append(row["completion"])
    missing = [task_id for task_id, some in found.items() if not some]
    if missing:
        raise InputError(
            f"{path} has no completion of {missing[0]} ({len(missing)} of {len(found)} problems have none)"
        )
    usual = Counter(map(len, found.values())).most_common(1)[0][0]
    for task_id, some in found.items():
        if len(some) != usual:
            raise InputError(f"{path} has {len(some)} completions of {task_id}, and {usual} of most problems")
    return found
