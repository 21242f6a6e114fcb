"""Settings of the language evaluation."""

from dataclasses import dataclass

from asarm.evals.config import ModelsConfig, Variant
from asarm.evals.language.likelihood import COLD
from asarm.sampling.config import NAMED_SAMPLERS
from asarm.utils.config import check_at_least, check_choices, option
from asarm.utils.errors import InputError

GREEDY = "greedy"
LIKELIHOOD = "likelihood"
TASKS = ("lambada", "hellaswag")


@dataclass
class LanguageEvalConfig(ModelsConfig):
    """Settings of the language evaluation."""

    models: list[str] = option(
        ["therealgabeguo/ASARM"],
        "bundled models, folders or Hub repositories; name@revision for a branch, tag or commit",
    )
    tasks: list[str] = option(list(TASKS), "of lambada and hellaswag")
    lambada: str = option(
        "",
        "passages: the lines of a text file, or the field text of .jsonl, .json, .csv or .parquet; without it, "
        "cimec/lambada's test part from the Hub",
    )
    hellaswag: str = option(
        "",
        "official .jsonl file, or the same as .json or .parquet; without it, Rowan/hellaswag's validation part from "
        "the Hub",
    )
    max_items: int = option(0, "how many passages and questions of each task, from the first on; 0 for all")
    samplers: list[str] = option(
        ["sequential", "assd-self", GREEDY],
        f"how LAMBADA's words are sampled: {', '.join(NAMED_SAMPLERS)}, {GREEDY} (at temperature 0)",
    )
    trials: int = option(1, f"how often LAMBADA's words are sampled, with different seeds; {GREEDY} is the same in all")
    batch_size: int = option(16, "passages, or pairs of question and ending, in one evaluation of the network")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, max_items=0, batch_size=1, trials=1)
        check_choices("task", self.tasks, TASKS)
        check_choices("sampler", self.samplers, (*NAMED_SAMPLERS, GREEDY))
        if not self.tasks:
            raise InputError(f"no tasks given: choose from {', '.join(TASKS)}")

    def variants(self, task: str) -> list[Variant]:
        """The exact likelihood, and for LAMBADA every sampler."""
        found = [Variant(LIKELIHOOD, LIKELIHOOD, self.sampling)]
        for name in dict.fromkeys(self.samplers if task == "lambada" else ()):
            greedy = name == GREEDY
            config = self.sampler_config("sequential", temperature=COLD) if greedy else self.sampler_config(name)
            found.append(Variant(name, name, config))
        return found

    def trials_of(self, variant: Variant) -> int:
        """How often a variant is run: once, where nothing is drawn."""
        return 1 if variant.name in (LIKELIHOOD, GREEDY) else self.trials
