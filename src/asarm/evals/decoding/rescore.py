"""Generative perplexity of finished decodings under another causal model: nothing is decoded again.

The results are in a folder of their own in that of the decodings, `judge-NAME`; it has the same files, made in the same
way, and all costs are those of the decodings. The true texts, where lines have them, are scored, too.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from asarm.evals.config import Variant
from asarm.evals.decoding.config import ENTROPY_HELP, SCORED, START_TOKEN_HELP, WHOLE
from asarm.evals.decoding.generative_perplexity import TextScore, causal_scorer
from asarm.evals.decoding.metrics import summarise
from asarm.evals.decoding.plots import plot_decoding
from asarm.evals.decoding.report import summary, table
from asarm.evals.resumable import Evaluation, Unit
from asarm.evals.stats import mean_se
from asarm.evals.tables import plus_minus
from asarm.models.load import pick_device
from asarm.sampling.config import SamplerConfig
from asarm.utils.config import check, check_choices, flat, option
from asarm.utils.errors import InputError
from asarm.utils.files import file_name, sha256_of_file
from asarm.utils.jsonl import read_json_lines
from asarm.utils.provenance import device_name

UNIT = ("model", "length", "variant", "batch")  # the fields that tell of which unit of the decodings a line is
AS_DECODED = "the default is that of the run that decoded"
NEEDED = (*UNIT, "index", "nfe", "targets", "gen_nll", "text")


@dataclass
class RescoringConfig:
    """Settings of a scoring of finished decodings. Some are by default those of the run that decoded."""

    judge: str = option("", "causal language model that gives perplexities, a folder or a Hub repository")
    add_start_token: bool | None = option(None, f"{START_TOKEN_HELP}; {AS_DECODED}")
    entropy_of: str = option("", f"{ENTROPY_HELP}; {AS_DECODED}")
    output_dir: str = option("", "folder for the results; the default is judge-NAME in that of the decodings")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")

    def __post_init__(self) -> None:
        name = self.judge
        check(bool(name), "no model given: name a causal language model with --judge")
        check(name != "self", "self is the model that decoded: name a causal language model with --judge")
        check_choices("entropy_of", [self.entropy_of], (SCORED, WHOLE, ""))

    def resolved(self, results: Path) -> "RescoringConfig":
        """With the settings of the run that decoded where none are given, and a folder for the results."""
        decoded = json.loads((results / "config.json").read_text(encoding="utf-8")).get("settings", {})
        is_given = self.add_start_token is not None
        return replace(
            self,
            add_start_token=self.add_start_token if is_given else decoded.get("add_start_token", False),
            entropy_of=self.entropy_of or decoded.get("entropy_of", SCORED),
            output_dir=self.output_dir or str(results / f"judge-{file_name(self.judge)}"),
        )


class Rescoring(Evaluation[dict]):
    """Items are lines of the decodings."""

    command, word = "judge", "text"

    def __init__(self, results: str | Path, config: RescoringConfig):
        self.decodings = read_decodings(Path(results))
        self.config = config.resolved(Path(results))
        self.source = Path(results) / "samples.jsonl"
        super().__init__(self.config)
        self.options |= {"results": str(Path(results).absolute())}

    @cached_property
    def score(self) -> Callable[[str], TextScore]:
        """The score of a text under the model."""
        scorer = causal_scorer(
            self.config.judge,
            pick_device(self.config.device),
            bool(self.config.add_start_token),
            self.config.entropy_of == WHOLE,
        )

        @cache  # true texts are those of many lines
        def score(text: str) -> TextScore:
            return scorer([text], torch.empty(0))[0]

        return score

    def settings(self) -> dict[str, Any]:
        """Raises InputError as `causal_scorer` does."""
        _ = self.score
        digest = sha256_of_file(self.source)
        kept = {name: value for name, value in flat(self.config).items() if name not in ("device", "output_dir")}
        return kept | {"samples_sha256": digest, "hardware": device_name(self.config.device)}

    def units(self) -> list[Unit[dict]]:
        groups: dict[tuple, list[dict]] = {}
        for line in self.decodings:
            groups.setdefault(tuple(line[name] for name in UNIT), []).append(line)
        return [
            Unit(
                dict(zip(UNIT, key, strict=True)),
                Variant(lines[0]["variant"], "", SamplerConfig()),
                lines,
                f"{key[1]} {key[2]}",
            )
            for key, lines in groups.items()
        ]

    def describe(self, todo: int, total: int) -> str:
        return f"{todo} of {total} texts to score with {self.config.judge}"

    def run(self, unit: Unit[dict]) -> list[dict]:
        """Score the texts of one unit: its lines, with the new scores."""
        return [line | self.scores(line) for line in unit.items]

    def scores(self, line: dict) -> dict[str, float]:
        """Those of a line's text, and of its true text if it has that."""
        score = self.score(line["text"])
        found = {"gen_nll": score.nll, "gen_ppl": math.exp(score.nll), "entropy": score.entropy}
        if "true_text" in line:
            true = self.score(line["true_text"])
            found |= {"true_ppl": math.exp(true.nll), "true_entropy": true.entropy}
        return found

    def report(self) -> dict:
        """Write metrics.json, table.md and plots. Returns the metrics."""
        lines = self.lines()
        metrics = summarise(lines) | {"true_texts": true_texts(lines)}
        about = about_true_texts(metrics["true_texts"])
        metrics = self.write_results(metrics, table_md=f"{self.heading()}\n\n{table(metrics)}{about}")
        plot_decoding(self.output)
        return metrics

    def heading(self) -> str:
        """What the scores are, in a sentence."""
        return f"Texts of {self.source.parent.name}; perplexity and entropy under {self.config.judge}."

    def summary(self, metrics: dict) -> str:
        return f"{self.heading()}\n{summary(metrics)}{about_true_texts(metrics['true_texts'])}"


def read_decodings(results: Path) -> list[dict]:
    """The lines of a finished decoding evaluation. Raises InputError when the folder is none."""
    ours = f"{results} is no results folder of asarm decode"
    for name in ("config.json", "samples.jsonl"):
        if not (results / name).is_file():
            raise InputError(f"{ours}: it has no {name}")
    lines = read_json_lines(results / "samples.jsonl")
    missing = [name for name in NEEDED if any(name not in line for line in lines)]
    if missing:
        raise InputError(f"{ours}: lines of its samples.jsonl have no {', '.join(missing)}")
    if not lines or not (results / "metrics.json").is_file():
        raise InputError(f"{results} is not finished: give the command that decodes there again first")
    return lines


def true_texts(lines: list[dict]) -> dict[str, dict] | None:
    """Perplexity and entropy of the texts that were there, each counted once; None if the lines do not have them."""
    texts = {(line["model"], line["length"], line["index"]): line for line in lines if "true_ppl" in line}
    if not texts:
        return None
    return {key: mean_se([line[f"true_{name}"] for line in texts.values()]) for key, name in TRUE_SCORES.items()}


TRUE_SCORES = {"perplexity": "ppl", "entropy": "entropy"}


def about_true_texts(scores: dict[str, dict] | None) -> str:
    """A line on the scores of the true texts, "" if there are none."""
    if not scores:
        return ""
    perplexity, entropy = plus_minus(scores["perplexity"], 1), plus_minus(scores["entropy"], 3)
    return f"\nThe {scores['entropy']['n']} true texts: perplexity {perplexity}, entropy {entropy} bits.\n"
