"""Infilling systems for stories: models, and the sentences of other stories."""

from collections.abc import Sequence

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
from asarm.evals.stories.data import TASKS, Story, StoryExample, bag_text, make_example
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError


class StoryGapLengthPolicy(GapLengthPolicy):
    """Lengths of masked sentences. Stories are short: one that a model does not take whole is an error."""

    def __init__(self, task: str, every: Sequence[StoryExample], count: int, longest: int | None, capacity: int):
        """count: the largest number of lengths that a search tries. capacity: of each masked sentence."""
        first, after = TASKS[task]
        distribution = LengthDistribution.fit([story.visible for story in every])

        def propose(story: InfillExample) -> list[int]:
            return distribution.proposals(story.visible, after - first, count)

        super().__init__(every, longest, propose, capacity * (after - first))

    def fitting(self, example: InfillExample, lengths: list[int]) -> list[int]:
        """Those with which the whole story is not too long for the model."""
        context = example.context_length
        fitting = [length for length in lengths if self.longest is None or context + length <= self.longest]
        if not fitting:
            raise InputError(
                f"story {example.name} has {context + lengths[0]} tokens, {lengths[0]} of them in its gap, "
                f"but the model takes at most {self.longest}: take it out of the file"
            )
        return fitting


def story_systems(config: StoriesConfig, stories: list[Story]) -> list[InfillSystem]:
    """All systems of a run. All models are held in memory together."""

    def make_examples(
        codec: TextCodec, longest: int | None
    ) -> tuple[dict[str, list[StoryExample]], dict[str, StoryGapLengthPolicy]]:
        chosen, policies = {}, {}
        for task in dict.fromkeys(config.tasks):
            every = [make_example(story, task, codec) for story in stories]
            chosen[task] = every[: config.max_items or None]
            policies[task] = StoryGapLengthPolicy(task, every, config.proposals, longest, config.gap_capacity)
        return chosen, policies

    def bag(example: StoryExample, task: str, trial: int) -> str:
        return bag_text(stories, example, task, sampling_seed(config.seed, example.index, trial))

    found: list[InfillSystem] = [AnySubsetSystem(name, config, make_examples) for name in config.model_names()]
    if config.causal:
        found.append(CausalSystem(config.causal, config, make_examples, config.loading.pick_device()))
    if BAG in config.samplers:
        if len(stories) < 2:
            raise InputError("bag takes another story's sentences, and there is only one story: leave out bag")
        found.append(ModelFreeBaseline(BAG, found[0].examples, bag))
    return found
