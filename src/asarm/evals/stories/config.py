"""Settings of the evaluation on stories."""

from dataclasses import dataclass

from asarm.evals.infilling.config import PREFIX_ONLY, InfillEvalConfig
from asarm.evals.stories.data import TASKS
from asarm.sampling.config import NAMED_SAMPLERS
from asarm.utils.config import check_at_least, check_choices, option
from asarm.utils.errors import InputError

BAG = "bag"


@dataclass
class StoriesConfig(InfillEvalConfig):
    """Settings of the evaluation on stories."""

    baselines = (BAG,)

    stories: str = option(
        "", "CSV file with the columns of the Story Cloze Test, or .jsonl, .json or .parquet with the same"
    )
    tasks: list[str] = option(list(TASKS), "1/5 masks the third of five sentences, 3/5 the second, third and fourth")
    samplers: list[str] = option(
        ["sequential", "assd-self", "assd-ngram", "parallel", PREFIX_ONLY, BAG],
        f"variants, of {', '.join((*NAMED_SAMPLERS, PREFIX_ONLY, BAG))}; prefix-only does not see what comes after "
        "the gap, bag takes the sentences of another story",
    )
    gap_capacity: int = option(
        20,
        "the most tokens of each masked sentence with gap_length model; none of the Story Cloze Test has more than 18 "
        "of SmolLM2's",
    )
    trials: int = option(5, "how often each gap is filled, with different seeds")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, trials=1)
        check_choices("task", self.tasks, TASKS)
        if not self.stories:
            raise InputError("no stories given: name their file with --stories")
