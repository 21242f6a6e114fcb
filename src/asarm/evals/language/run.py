"""Understanding: the last word of LAMBADA's passages, and which of HellaSwag's four endings is right.

LAMBADA: the last word is a gap behind the rest of the passage. It is sampled, and compared with the gold word as text;
the gap is as long as the gold word's tokens, which the paper gives away, too. And the exact log-likelihood of the gold
word is taken, in one function evaluation.

HellaSwag: the ending with the highest joint log-likelihood given the context is chosen, with and without dividing it
by the ending's length in characters.

Contexts, continuations and scores are those of the tasks `lambada_standard` and `hellaswag` of lm-evaluation-harness.
Each line of `samples.jsonl` is one passage or question under one variant; tables are made from that file.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asarm.evals.language.config import LanguageEvalConfig
from asarm.evals.language.data import Question, hellaswag_questions, lambada_questions
from asarm.evals.language.likelihood import Pair, encode_pair, padded, score_pairs
from asarm.evals.language.report import LIKELIHOOD, summarise, table
from asarm.evals.resumable import claim, run_settings, run_units, sampling_seed, unfinished
from asarm.models.compiled import compiled_for_decoding
from asarm.models.load import load_on_device, pick_device
from asarm.sampling import sample
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import text_after
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_tensors, write_json, write_text
from asarm.utils.jsonl import read_json_lines

logger = logging.getLogger(__name__)
UNIT_FIELDS = ("task", "variant", "batch")


class Item(NamedTuple):
    """A passage (one ending: its last word) or a question (all endings). pairs: its tokens, a pair an ending.

    label: which ending is right.
    """

    index: int
    context: str
    endings: list[str]
    label: int
    pairs: list[Pair]


@dataclass
class Unit:
    """What is run and written at once: some items of a task under one variant."""

    task: str
    variant: str
    batch: int
    items: list[Item]

    @property
    def key(self) -> tuple[str, str, int]:
        """The fields UNIT_FIELDS of its lines."""
        return self.task, self.variant, self.batch

    @property
    def size(self) -> int:
        return len(self.items)

    @property
    def name(self) -> str:
        return f"{self.task} {self.variant}"


def items_of(questions: list[Question], codec: TextCodec, longest: int, task: str, limit: int) -> list[Item]:
    """The first `limit` questions (0: all) with their tokens. What is over `longest` tokens is cut on the left."""
    items = []
    for index, question in enumerate(questions[: limit or None]):
        try:
            pairs = [encode_pair(codec, question.context, ending, longest) for ending in question.endings]
        except InputError as error:
            raise InputError(f"{task}, item {index + 1}: {error}") from error
        items.append(Item(index, question.context, question.endings, question.label, pairs))
    cut = sum(any(pair.cut for pair in item.pairs) for item in items)
    if cut:
        logger.info(
            "%s: %d of %d contexts are cut on the left to the model's %d tokens", task, cut, len(items), longest
        )
    return items


def likelihood_lambada(model, codec: TextCodec, unit: Unit, config: LanguageEvalConfig) -> list[dict]:
    """The exact log-likelihood of each gold word, and whether it is what greedy decoding gives."""
    scores = score_pairs(model, [item.pairs[0] for item in unit.items], config.batch_size)
    return [
        about(unit, item)
        | {
            "word": item.endings[0].strip(),
            "tokens": len(item.pairs[0].continuation),
            "log_prob": score.log_prob,
            "correct": score.is_greedy,
        }
        for item, score in zip(unit.items, scores, strict=True)
    ]


def sample_lambada(model, codec: TextCodec, unit: Unit, config: LanguageEvalConfig) -> list[dict]:
    """Each last word sampled, given how many tokens the gold one has."""
    tokens, given, target = padded([item.pairs[0] for item in unit.items], model.device)
    seeds = [sampling_seed(config.seed, item.index) for item in unit.items]
    masked = tokens.masked_fill(~given, codec.mask_token_id)
    result = sample(model, masked, given, target, config.variant_config(unit.variant), seeds)
    lines = []
    for row, item in enumerate(unit.items):
        pair = item.pairs[0]
        filled = result.tokens[row][target[row]].tolist()
        # Both words as the tokenizer gives them back: it may have normalised the text.
        word, gold = (text_after(codec, pair.context, ids).strip() for ids in (filled, pair.continuation))
        lines.append(
            about(unit, item)
            | {
                "word": gold,
                "filled": word,
                "tokens": len(pair.continuation),
                "nfe": int(result.nfe[row]),
                "seconds": result.seconds / len(unit.items),
                "correct": word == gold,
            }
        )
    return lines


def likelihood_hellaswag(model, codec: TextCodec, unit: Unit, config: LanguageEvalConfig) -> list[dict]:
    """The joint log-likelihood of each ending, and the best of them."""
    scores = iter(score_pairs(model, [pair for item in unit.items for pair in item.pairs], config.batch_size))
    lines = []
    for item in unit.items:
        log_probs = [next(scores).log_prob for _ in item.pairs]
        lengths = [max(1, len(ending) - 1) for ending in item.endings]  # without the space in front
        choice = best_option(log_probs)
        choice_norm = best_option([score / length for score, length in zip(log_probs, lengths, strict=True)])
        lines.append(
            about(unit, item)
            | {
                "label": item.label,
                "log_probs": log_probs,
                "characters": lengths,
                "choice": choice,
                "choice_norm": choice_norm,
                "correct": choice == item.label,
                "correct_norm": choice_norm == item.label,
            }
        )
    return lines


def best_option(scores: list[float]) -> int:
    """Which score is the highest; the first of those that are."""
    return int(np.argmax(scores))


def about(unit: Unit, item: Item) -> dict:
    """The fields of every line. cut: tokens of the context that the model could not take."""
    cut = max(pair.cut for pair in item.pairs)
    return {"task": unit.task, "variant": unit.variant, "batch": unit.batch, "index": item.index, "cut": cut}


class Task(NamedTuple):
    """Where its questions come from (given a path or ""), and how a batch of them is scored."""

    questions: Callable[[str], list[Question]]
    likelihood: Callable[..., list[dict]]


TASKS = {
    "lambada": Task(lambada_questions, likelihood_lambada),
    "hellaswag": Task(hellaswag_questions, likelihood_hellaswag),
}


def plan(items: dict[str, list[Item]], config: LanguageEvalConfig) -> list[Unit]:
    """All work, in batches of items whose contexts are of like length."""
    units = []
    for task, some in items.items():
        ordered = sorted(some, key=lambda item: len(item.pairs[0].context), reverse=True)
        batches = [ordered[i : i + config.batch_size] for i in range(0, len(ordered), config.batch_size)]
        variants = [LIKELIHOOD] + (list(dict.fromkeys(config.samplers)) if task == "lambada" else [])
        units += [Unit(task, variant, number, batch) for variant in variants for number, batch in enumerate(batches)]
    return units


def run_unit(model, codec: TextCodec, unit: Unit, config: LanguageEvalConfig) -> list[dict]:
    """A line for each item of a unit."""
    run = TASKS[unit.task].likelihood if unit.variant == LIKELIHOOD else sample_lambada
    return run(model, codec, unit, config)


def evaluate(config: LanguageEvalConfig) -> dict:
    """Run what is left to run, then write metrics.json and table.md to output_dir. Returns the metrics."""
    output, device = Path(config.output_dir), pick_device(config.device)
    names = list(dict.fromkeys(config.tasks))
    questions = {name: TASKS[name].questions(getattr(config, name)) for name in names}
    model, codec = load_on_device(config.model, config.revision, config.white_space, device, config.dtype)
    longest = model.config.n_positions
    items = {name: items_of(some, codec, longest, name, config.max_items) for name, some in questions.items()}

    every = [pair for some in items.values() for item in some for pair in item.pairs]
    digests = {
        "weights_sha256": sha256_of_tensors(model.state_dict().values()),
        "items_sha256": sha256_of_tensors(padded(every, device)),
    }
    claim(output, run_settings(config) | digests)

    samples = output / "samples.jsonl"
    units = plan(items, config)
    todo = unfinished(samples, units, UNIT_FIELDS)
    logger.info(
        "%s; %d of %d lines to do",
        ", ".join(f"{len(some)} of {name}" for name, some in items.items()),
        sum(unit.size for unit in todo),
        sum(unit.size for unit in units),
    )
    model = compiled_for_decoding(model, config.compile)
    run_units(samples, units, todo, lambda unit: run_unit(model, codec, unit, config), "item")
    return report(output)


def report(output: Path) -> dict:
    """metrics.json and table.md of a finished run, from its result files."""
    metrics = summarise(read_json_lines(output / "samples.jsonl"))
    run = json.loads((output / "config.json").read_text(encoding="utf-8"))
    write_json(output / "metrics.json", metrics | run)
    write_text(output / "table.md", table(metrics))
    return metrics
