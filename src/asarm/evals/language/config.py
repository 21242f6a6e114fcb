"""Settings of the language evaluation."""

from dataclasses import dataclass

from asarm.evals.config import EvalConfig
from asarm.evals.language.likelihood import COLD
from asarm.sampling.config import SamplerConfig
from asarm.sampling.registry import SAMPLERS
from asarm.utils.config import option
from asarm.utils.errors import InputError

GREEDY = "greedy"
TASKS = ("lambada", "hellaswag")


@dataclass
class LanguageEvalConfig(EvalConfig):
    """What is asked, how and where to."""

    tasks: list[str] = option(["lambada", "hellaswag"], "of lambada and hellaswag")
    lambada: str = option("", "UTF-8 file, one passage a line; without it, cimec/lambada's test part from the Hub")
    hellaswag: str = option("", "official .jsonl file; without it, Rowan/hellaswag's validation part from the Hub")
    max_items: int = option(0, "passages and questions: the first so many of each task; 0 for all")
    samplers: list[str] = option(
        ["sequential", "assd-self", GREEDY],
        f"how LAMBADA's words are sampled: {', '.join(SAMPLERS)}, {GREEDY} (at temperature 0)",
    )
    batch_size: int = option(16, "passages, or pairs of question and ending, in one evaluation of the network")

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(max_items=0, batch_size=1)
        self.check_choices("task", self.tasks, TASKS)
        self.check_choices("sampler", self.samplers, (*SAMPLERS, GREEDY))
        if not self.tasks:
            raise InputError(f"no tasks given: choose from {', '.join(TASKS)}")

    def variant_config(self, name: str) -> SamplerConfig:
        """The settings of one of `samplers`."""
        return self.sampler_config("sequential", temperature=COLD) if name == GREEDY else self.sampler_config(name)
