"""What fills the gaps of stories: models, and other stories' sentences."""

from collections.abc import Sequence

import torch

from asarm.evals.infilling.example import InfillExample
from asarm.evals.infilling.gap_length import LengthDistribution
from asarm.evals.infilling.systems import (
    AnySubsetSystem,
    CausalSystem,
    GapLengthPolicy,
    InfillSystem,
    ModelFreeBaseline,
)
from asarm.evals.resumable import sampling_seed
from asarm.evals.stories.config import BAG, StoriesConfig
from asarm.evals.stories.data import TASKS, Story, StoryExample, bag_text, cut
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError


class StoryGapLengthPolicy(GapLengthPolicy):
    """Lengths of masked sentences. Stories are short: one that a model does not take whole is an error."""

    def __init__(self, task: str, every: Sequence[StoryExample], count: int, longest: int | None):
        """count: most lengths that a search tries."""
        first, behind = TASKS[task]
        law = LengthDistribution.learn([story.visible for story in every])
        super().__init__(every, longest, lambda story: law.proposals(story.visible, behind - first, count))

    def fitting(self, gap: InfillExample, lengths: list[int]) -> list[int]:
        """Those with which the whole story is not too long for the model."""
        fitting = [length for length in lengths if self.longest is None or gap.context_length + length <= self.longest]
        if not fitting:
            raise InputError(
                f"story {gap.name} has {gap.context_length + lengths[0]} tokens, {lengths[0]} of them in its gap, "
                f"but the model takes at most {self.longest}: take it out of the file"
            )
        return fitting


def story_systems(config: StoriesConfig, stories: list[Story], device: torch.device) -> list[InfillSystem]:
    """All that fills gaps in this run. All models are held in memory together."""

    def cut_all(
        codec: TextCodec, longest: int | None
    ) -> tuple[dict[str, list[StoryExample]], dict[str, StoryGapLengthPolicy]]:
        chosen, lengths = {}, {}
        for task in dict.fromkeys(config.tasks):
            every = [cut(story, task, codec) for story in stories]
            chosen[task] = every[: config.max_items or None]
            lengths[task] = StoryGapLengthPolicy(task, every, config.proposals, longest)
        return chosen, lengths

    def bag(gap: StoryExample, task: str, trial: int) -> str:
        return bag_text(stories, gap, task, sampling_seed(config.seed, gap.index, trial))

    found = [AnySubsetSystem(name, config, cut_all, device) for name in config.model_names()]
    found += [CausalSystem(config.causal, config, cut_all, device)] if config.causal else []
    if BAG in config.samplers:
        if len(stories) < 2:
            raise InputError("bag takes another story's sentences, and there is only one story: leave out bag")
        found.append(ModelFreeBaseline(BAG, found[0].gaps, bag))
    return found
