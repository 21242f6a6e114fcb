"""Stories with a gap: how close what a model writes is to what the author wrote, beside baselines, and at what cost.

Every story, task, variant and trial gives one line of `samples.jsonl`, which is a function of them and of the seed,
so that an interrupted run goes on where it stopped; tables, plots and the page of stories are made from that file.
"""

import json
import logging
from pathlib import Path

from asarm.data import file_digest
from asarm.evals.fill import Filled
from asarm.evals.infill_run import Unit, fill_gaps, settings_of
from asarm.evals.plots import plot_stories
from asarm.evals.report import story_page, story_table
from asarm.evals.rouge import rouge
from asarm.evals.runs import claim
from asarm.evals.story_config import StoriesConfig
from asarm.evals.story_data import GapStory, read_stories
from asarm.evals.story_fillers import story_fillers
from asarm.evals.story_stats import summarise
from asarm.files import read_json_lines, write_json, write_text
from asarm.models.ready import pick_device

logger = logging.getLogger(__name__)
UNIT_FIELDS = ("model", "task", "variant", "trial", "batch")


def story_line(unit: Unit, story: GapStory, filled: Filled) -> dict:
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
    fillers = story_fillers(config, stories, device)
    claim(output, settings_of(config, fillers) | {"stories_sha256": file_digest(Path(config.stories))})
    logger.info("%d stories, %d trials", min(len(stories), config.max_items or len(stories)), config.trials)
    fill_gaps(output / "samples.jsonl", config, fillers, config.trials, UNIT_FIELDS, story_line)
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
