"""Stories with a gap: how close what a model writes is to what the author wrote, beside baselines, and at what cost.

Every story, task, variant and trial gives one line of `samples.jsonl`, which is a function of them and of the seed,
so that an interrupted run goes on where it stopped; tables, plots and the page of stories are made from that file.
"""

import json
import logging
from pathlib import Path

from asarm.evals.infilling.infill import InfillResult
from asarm.evals.infilling.run import Unit, fill_gaps, settings_of
from asarm.evals.resumable import claim
from asarm.evals.stories.config import StoriesConfig
from asarm.evals.stories.data import StoryExample, read_stories
from asarm.evals.stories.metrics import rouge, summarise
from asarm.evals.stories.report import plot_stories, story_page, story_table
from asarm.evals.stories.systems import story_systems
from asarm.models.load import pick_device
from asarm.utils.files import sha256_of_file, write_json, write_text
from asarm.utils.jsonl import read_json_lines

logger = logging.getLogger(__name__)
UNIT_FIELDS = ("model", "task", "variant", "trial", "batch")


def story_line(unit: Unit, story: StoryExample, filled: InfillResult) -> dict:
    """What stands in a line of `samples.jsonl` besides costs."""
    text = filled.text.strip()
    return {
        "task": unit.group,
        "trial": unit.trial,
        "story": story.name,
        **rouge(story.gold, text),
        "prefix": story.prefix,
        "suffix": story.suffix,
        "gold": story.gold,
        "text": text,
    }


def evaluate(config: StoriesConfig) -> dict:
    """Run what is left to run, then write metrics.json, table.md, rouge.png and stories.html. Returns the metrics."""
    output, device = Path(config.output_dir), pick_device(config.device)
    stories = read_stories(config.stories)
    systems = story_systems(config, stories, device)
    claim(output, settings_of(config, systems) | {"stories_sha256": sha256_of_file(Path(config.stories))})
    logger.info("%d stories, %d trials", min(len(stories), config.max_items or len(stories)), config.trials)
    fill_gaps(output / "samples.jsonl", config, systems, config.trials, UNIT_FIELDS, story_line)
    return report(output)


def report(output: Path) -> dict:
    """metrics.json, table.md, rouge.png and stories.html of a finished run, from its result files."""
    about = json.loads((output / "config.json").read_text(encoding="utf-8"))
    lines = read_json_lines(output / "samples.jsonl")
    metrics = summarise(lines) | about
    write_json(output / "metrics.json", metrics)
    for name, text in (("table.md", story_table(metrics)), ("stories.html", story_page(lines))):
        write_text(output / name, text)
    plot_stories(output)
    return metrics
