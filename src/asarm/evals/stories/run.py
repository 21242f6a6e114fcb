"""The evaluation on stories: gaps filled by models and baselines, compared with the author's text, and costs.

Every story, task, variant and trial gives one line of `samples.jsonl`, which is a function of them and of the seed,
so that an interrupted run goes on where it stopped; tables, plots and the page of stories are made from that file.
"""

from pathlib import Path
from typing import Any

from asarm.evals.infilling.infill import InfillResult
from asarm.evals.infilling.run import InfillEvaluation
from asarm.evals.infilling.systems import InfillSystem
from asarm.evals.resumable import Unit
from asarm.evals.stories.config import StoriesConfig
from asarm.evals.stories.data import StoryExample, read_stories
from asarm.evals.stories.metrics import rouge, summarise, with_measures
from asarm.evals.stories.report import plot_stories, story_page, story_summary, story_table
from asarm.evals.stories.systems import story_systems
from asarm.evals.tables import counted
from asarm.utils.files import sha256_of_file


class StoriesEvaluation(InfillEvaluation):
    """Groups are tasks: which sentences are masked."""

    command, group_field, trial_field = "stories", "task", "trial"

    def __init__(self, config: StoriesConfig):
        super().__init__(config, config.trials)
        self.story_config = config

    def load_systems(self) -> list[InfillSystem]:
        return story_systems(self.story_config, read_stories(self.story_config.stories))

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"stories_sha256": sha256_of_file(Path(self.story_config.stories))}

    def describe(self, todo: int, total: int) -> str:
        count = max(len(examples) for system in self.systems for examples in system.examples.values())
        return f"{counted(count, 'stories')}, {counted(self.trials, 'trials')}; {super().describe(todo, total)}"

    def line(self, unit: Unit, example: StoryExample, result: InfillResult) -> dict:
        text = result.text.strip()
        return {
            "story": example.name,
            **rouge(example.reference, text),
            "prefix": example.prefix,
            "suffix": example.suffix,
            "gold": example.reference,
            "text": text,
        }

    def report(self) -> dict:
        """Write metrics.json, table.md, rouge.png and stories.html. Returns the metrics."""
        lines = [with_measures(line) for line in self.lines()]
        metrics = summarise(lines)
        page = story_page(lines)
        metrics = self.write_results(metrics, table_md=story_table(metrics), stories_html=page)
        plot_stories(self.output)
        return metrics

    def summary(self, metrics: dict) -> str:
        return story_summary(metrics)


def evaluate(config: StoriesConfig) -> dict:
    """Run what is left to run, then write metrics.json, table.md, rouge.png and stories.html. Returns the metrics."""
    return StoriesEvaluation(config).complete()
