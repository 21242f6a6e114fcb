"""The evaluation on stories: gaps filled by models and baselines, compared with the author's text, and costs.

Every story, task, variant and trial gives one line of `samples.jsonl`, which is a function of them and of the seed,
so that an interrupted run goes on where it stopped; tables, plots and the page of stories are made from that file.
"""

from pathlib import Path
from typing import Any

from asarm.evals.infilling.infill import InfillResult
from asarm.evals.infilling.run import InfillEvaluation
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

    group_field, trial_field = "task", "trial"

    def __init__(self, config: StoriesConfig):
        stories = read_stories(config.stories)
        super().__init__(config, story_systems(config, stories), config.trials)
        self.stories, self.count = Path(config.stories), min(len(stories), config.max_items or len(stories))

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"stories_sha256": sha256_of_file(self.stories)}

    def describe(self, todo: int, total: int) -> str:
        return f"{counted(self.count, 'stories')}, {counted(self.trials, 'trials')}; {super().describe(todo, total)}"

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
