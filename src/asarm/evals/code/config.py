"""Settings of the evaluation on code."""

from dataclasses import dataclass

from asarm.evals.code.baselines import BASELINES
from asarm.evals.code.data import SPLITS, check_split
from asarm.evals.infilling.config import PREFIX_ONLY, InfillEvalConfig
from asarm.sampling.config import NAMED_SAMPLERS
from asarm.utils.config import check_at_least, nested, option
from asarm.utils.errors import InputError

WANTED_K = (1, 10, 100)  # of pass@k
LONGEST_TIMEOUT = 86400  # seconds; the operating system's clocks cannot count very many


@dataclass
class TestRunnerConfig:
    """How completed programs are run with their tests."""

    __test__ = False  # for pytest, which takes classes of such a name for tests

    workers: int | None = option(None, "programs that run at a time; the default is one for each CPU")
    timeout: float = option(3.0, "seconds that a program may take")

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_at_least(self, workers=1)
        if not 0.1 <= self.timeout <= LONGEST_TIMEOUT:
            raise InputError(f"timeout must lie in [0.1, {LONGEST_TIMEOUT}] seconds, not {self.timeout}")


@dataclass
class CodeConfig(InfillEvalConfig):
    """Settings of the evaluation on code."""

    baselines = tuple(BASELINES)

    test_runner: TestRunnerConfig = nested(TestRunnerConfig)
    splits: list[str] = option([], f"benchmarks: {', '.join(SPLITS)}; the default is single-line", "--split")
    data_dir: str = option("", "folder with the official jsonl.gz files, if OpenAI's package does not have them")
    problems: list[str] = option([], "files of problems in the official format, instead of the official ones")
    samplers: list[str] = option(
        ["sequential", "assd-self", "assd-ngram", "parallel", PREFIX_ONLY, *BASELINES],
        f"variants, of {', '.join((*NAMED_SAMPLERS, PREFIX_ONLY, *BASELINES))}; prefix-only does not see what comes "
        "after the gap, frequent-line repeats the most frequent visible line, canonical is the right solution",
    )
    parallel_steps: list[int] = option([1, 4], "numbers of steps of the parallel sampler")
    gap_capacity: int = option(
        48,
        "the most tokens of a gap with gap_length model; 0.2 % of single-line have more of SmolLM2's, and 14 % of "
        "random-span-light",
    )
    samples_per_task: int = option(1, "completions of each problem, with different seeds")
    allow_code_execution: bool = option(False, "run completed programs with their tests, in a sandbox, for pass@k")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, samples_per_task=1)
        for name in self.splits:
            check_split(name)
        if not self.problems:
            self.splits = self.splits or ["single-line"]
