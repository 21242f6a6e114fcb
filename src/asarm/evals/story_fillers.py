"""What fills the gaps of stories: models, and other stories' sentences."""

from collections.abc import Sequence

import torch

from asarm.codec import TextCodec
from asarm.errors import InputError
from asarm.evals.fillers import AnySubset, Causal, Filler, Lengths, Written
from asarm.evals.gap_length import LengthLaw
from asarm.evals.gapped import Gapped
from asarm.evals.runs import sampling_seed
from asarm.evals.story_config import BAG, StoriesConfig
from asarm.evals.story_data import TASKS, GapStory, Story, bag_text, cut


class StoryLengths(Lengths):
    """Lengths of masked sentences. Stories are short: one that a model does not take whole is an error."""

    def __init__(self, task: str, every: Sequence[GapStory], count: int, longest: int | None):
        """count: most lengths that a search tries."""
        first, behind = TASKS[task]
        law = LengthLaw.learn([story.visible for story in every])
        super().__init__(every, longest, lambda story: law.proposals(story.visible, behind - first, count))

    def fitting(self, gap: Gapped, lengths: list[int]) -> list[int]:
        """Those with which the whole story is not too long for the model."""
        fitting = [length for length in lengths if self.longest is None or gap.around + length <= self.longest]
        if not fitting:
            raise InputError(
                f"story {gap.name} has {gap.around + lengths[0]} tokens, {lengths[0]} of them in its gap, "
                f"but the model takes at most {self.longest}: take it out of the file"
            )
        return fitting


def story_fillers(config: StoriesConfig, stories: list[Story], device: torch.device) -> list[Filler]:
    """All that fills gaps in this run. All models are held in memory together."""

    def cut_all(codec: TextCodec, longest: int | None) -> tuple[dict[str, list[GapStory]], dict[str, StoryLengths]]:
        chosen, lengths = {}, {}
        for task in dict.fromkeys(config.tasks):
            every = [cut(story, task, codec) for story in stories]
            chosen[task] = every[: config.max_items or None]
            lengths[task] = StoryLengths(task, every, config.proposals, longest)
        return chosen, lengths

    def bag(gap: GapStory, task: str, trial: int) -> str:
        return bag_text(stories, gap, task, sampling_seed(config.seed, gap.index, trial))

    found = [AnySubset(name, config, cut_all, device) for name in config.model_names()]
    found += [Causal(config.causal, config, cut_all, device)] if config.causal else []
    if BAG in config.samplers:
        if len(stories) < 2:
            raise InputError("bag takes another story's sentences, and there is only one story: leave out bag")
        found.append(Written(BAG, found[0].gaps, bag))
    return found
