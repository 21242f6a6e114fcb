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
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asarm.codec import TextCodec
from asarm.config import SamplerConfig, option
from asarm.data import read_text
from asarm.errors import InputError
from asarm.evals.hub import hub_rows
from asarm.evals.language_report import LIKELIHOOD, summarise, table
from asarm.evals.likelihood import COLD, Pair, encode_pair, padded, score_pairs
from asarm.evals.runs import SAMPLERS, EvalConfig, claim, digest, run_settings, run_units, sampling_seed, unfinished
from asarm.files import read_json_lines, write_json, write_text
from asarm.models.compiled import compiled_for_decoding
from asarm.models.ready import load_ready, pick_device
from asarm.rows import parse_row
from asarm.sampling import sample
from asarm.text import text_behind

logger = logging.getLogger(__name__)
LAMBADA = ("cimec/lambada", "test")
HELLASWAG = ("Rowan/hellaswag", "validation")  # the labels of its test part are kept secret
GREEDY = "greedy"
UNIT_FIELDS = ("task", "variant", "batch")


@dataclass
class LanguageEvalConfig(EvalConfig):
    """What is asked, how and where to."""

    tasks: list[str] = option(["lambada", "hellaswag"], "of lambada and hellaswag")
    lambada: str = option("", "UTF-8 file, one passage a line; without it, cimec/lambada's test part from the Hub")
    hellaswag: str = option("", "official .jsonl file; without it, Rowan/hellaswag's validation part from the Hub")
    max_items: int = option(0, "passages and questions: the first so many of each task; 0 for all")
    samplers: list[str] = option(
        ["sequential", "assd-self", GREEDY],
        f"how LAMBADA's words are sampled: {', '.join(SAMPLERS)}, {GREEDY} (at temperature 0)",
    )
    batch_size: int = option(16, "passages, or pairs of question and ending, in one evaluation of the network")

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(max_items=0, batch_size=1)
        self.check_choices("task", self.tasks, TASKS)
        self.check_choices("sampler", self.samplers, (*SAMPLERS, GREEDY))
        if not self.tasks:
            raise InputError(f"no tasks given: choose from {', '.join(TASKS)}")

    def variant_config(self, name: str) -> SamplerConfig:
        """The settings of one of `samplers`."""
        return self.sampler_config("sequential", temperature=COLD) if name == GREEDY else self.sampler_config(name)


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


# --- data


class Question(NamedTuple):
    """A context, what may follow it, and which of that is right. Endings begin with their space."""

    context: str
    endings: list[str]
    label: int


def lambada_questions(path: str) -> list[Question]:
    """Passages without their last word, and that word. InputError, with the line, for what is no passage."""
    passages = file_lines(path) if path else [row["text"] for row in hub_rows(LAMBADA, "--lambada")]
    source = path or LAMBADA[0]
    questions = []
    for number, passage in enumerate(passages, 1):
        context, _, word = passage.strip().rpartition(" ")
        if not context:
            raise InputError(f"{source}, passage {number} must have at least two words, not {word!r}: mend it")
        questions.append(Question(context, [" " + word], 0))
    return questions


def hellaswag_questions(path: str) -> list[Question]:
    """Questions with their endings. InputError, with the line, for what is no JSON, lacks a field or has no label."""
    rows = file_lines(path) if path else hub_rows(HELLASWAG, "--hellaswag")
    source = path or HELLASWAG[0]
    return [hellaswag_question(row, f"{source}, question {number}") for number, row in enumerate(rows, 1)]


def hellaswag_question(row: str | dict, where: str) -> Question:
    """One question. Its context is `activity_label: ctx_a Ctx_b`, as in the harness, or else the field ctx alone."""
    if isinstance(row, str):
        row = parse_row(row, where)
    parts = [row.get(name) for name in ("activity_label", "ctx_a", "ctx_b")]
    if all(isinstance(part, str) for part in parts):
        label, first, second = parts
        context = clean(f"{label}: {first} {second.capitalize()}")
    else:
        context = clean(row["ctx"]) if isinstance(row.get("ctx"), str) else ""
    if not context:
        raise InputError(f"{where} has no context: it needs the field ctx, or activity_label, ctx_a and ctx_b")
    endings = row.get("endings")
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(ending, str) for ending in endings):
        raise InputError(f"{where} needs the field endings, a list of at least two texts")
    label = str(row.get("label", ""))
    if not label.isdecimal() or int(label) >= len(endings):
        raise InputError(f"{where} needs the field label, from 0 to {len(endings) - 1}, not {label!r}")
    return Question(context, [" " + clean(ending) for ending in endings], int(label))


def clean(text: str) -> str:
    """HellaSwag's text without the marks that WikiHow left in it, exactly as the harness does it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub("\\[.*?\\]", "", text).replace("  ", " ")


def file_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file; the last may be without its end. InputError when it cannot be read, or is empty."""
    return read_text(path).removesuffix("\n").split("\n")


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


# --- one batch


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
        word, gold = (text_behind(codec, pair.context, ids).strip() for ids in (filled, pair.continuation))
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


# --- a run


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
    model, codec = load_ready(config.model, config.revision, config.white_space, device, config.dtype)
    longest = model.config.n_positions
    items = {name: items_of(some, codec, longest, name, config.max_items) for name, some in questions.items()}

    every = [pair for some in items.values() for item in some for pair in item.pairs]
    digests = {"weights_sha256": digest(model.state_dict().values()), "items_sha256": digest(padded(every, device))}
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
