"""The language evaluation: the last words of LAMBADA's passages, and HellaSwag's four endings.

LAMBADA: the last word is a gap after the rest of the passage. It is sampled, once a trial, and compared with the
reference word as a string; the gap is as long as the reference word's tokens, which the paper gives away, too. And the
exact log-likelihood of the reference word is taken, in one function evaluation.

HellaSwag: the ending with the highest joint log-likelihood given the context is chosen, with and without dividing it
by the ending's length in characters.

Contexts, continuations and scores are those of the tasks `lambada_standard` and `hellaswag` of lm-evaluation-harness.
Each line of `samples.jsonl` is one passage or question under one variant of one model, in one trial; tables are made
from that file.
"""

import logging
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from asarm.evals.language.config import LIKELIHOOD, LanguageEvalConfig
from asarm.evals.language.data import Question, read_questions
from asarm.evals.language.likelihood import Pair, encode_pair, pair_batch, score_pairs
from asarm.evals.language.report import summarise, summary, table
from asarm.evals.resumable import Evaluation, Unit, batches, run_settings, sampling_seed
from asarm.models.compiled import DecodingModel, compiled_for_decoding
from asarm.sampling import sample
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import text_after
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_tensors

logger = logging.getLogger(__name__)


class Item(NamedTuple):
    """A passage (one ending: its last word) or a question (all endings), and the tokens of each of its endings."""

    number: int
    question: Question
    pairs: list[Pair]


def items_of(questions: list[Question], codec: TextCodec, longest: int, task: str, limit: int) -> list[Item]:
    """The first `limit` questions (0: all) with their tokens. What is over `longest` tokens is cut on the left."""
    items = []
    for index, question in enumerate(questions[: limit or None]):
        try:
            pairs = [encode_pair(codec, question.context, ending, longest) for ending in question.endings]
        except InputError as error:
            raise InputError(f"{task}, item {index + 1}: {error}") from error
        items.append(Item(index, question, pairs))
    cut = sum(any(pair.cut for pair in item.pairs) for item in items)
    if cut:
        logger.info(
            "%s: %d of %d contexts are cut on the left to the model's %d tokens", task, cut, len(items), longest
        )
    return items


def likelihood_lambada(model: DecodingModel, items: list[Item], batch_size: int) -> list[dict]:
    """The exact log-likelihood of each reference word, and whether greedy decoding gives it."""
    scores = score_pairs(model, [item.pairs[0] for item in items], batch_size)
    return [
        {
            "word": item.question.endings[0].strip(),
            "tokens": len(item.pairs[0].continuation),
            "log_prob": score.log_prob,
            "correct": score.is_greedy,
        }
        for item, score in zip(items, scores, strict=True)
    ]


def sample_lambada(model: DecodingModel, codec: TextCodec, unit: Unit[Item], seed: int) -> list[dict]:
    """Each last word sampled, given how many tokens the reference has."""
    batch = pair_batch([item.pairs[0] for item in unit.items], model.device)
    seeds = [sampling_seed(seed, item.number, unit.key["trial"]) for item in unit.items]
    result = sample(model, *batch.masked(codec.mask_token_id), unit.variant.config, seeds)
    lines = []
    for row, item in enumerate(unit.items):
        pair = item.pairs[0]
        sampled = result.tokens[row][batch.target[row]].tolist()
        # Both words as the tokenizer gives them back: it may have normalised the text.
        word, reference = (text_after(codec, pair.context, ids).strip() for ids in (sampled, pair.continuation))
        lines.append(
            {
                "word": reference,
                "filled": word,
                "tokens": len(pair.continuation),
                "nfe": int(result.nfe[row]),
                "seconds": result.seconds / len(unit.items),
                "correct": word == reference,
            }
        )
    return lines


def likelihood_hellaswag(model: DecodingModel, items: list[Item], batch_size: int) -> list[dict]:
    """The joint log-likelihood of each ending, and the best of them."""
    scores = iter(score_pairs(model, [pair for item in items for pair in item.pairs], batch_size))
    lines = []
    for item in items:
        log_probs = [next(scores).log_prob for _ in item.pairs]
        lengths = [max(1, len(ending) - 1) for ending in item.question.endings]  # without the leading space
        choice = best_option(log_probs)
        choice_norm = best_option([score / length for score, length in zip(log_probs, lengths, strict=True)])
        lines.append(
            {
                "label": item.question.label,
                "log_probs": log_probs,
                "characters": lengths,
                "choice": choice,
                "choice_norm": choice_norm,
                "correct": choice == item.question.label,
                "correct_norm": choice_norm == item.question.label,
            }
        )
    return lines


def best_option(scores: list[float]) -> int:
    """Which score is the highest; the first of those that are."""
    return int(np.argmax(scores))


class LanguageSystem:
    """A model, and the items of each task in its tokens."""

    def __init__(self, name: str, config: LanguageEvalConfig, questions: dict[str, list[Question]]):
        """name: of the model, or name@revision. questions: by task."""
        loaded, self.codec = config.load_model(name)
        longest = loaded.config.n_positions
        self.name = name
        self.items = {
            task: items_of(some, self.codec, longest, task, config.max_items) for task, some in questions.items()
        }
        every = [pair for some in self.items.values() for item in some for pair in item.pairs]
        self.weights_digest = sha256_of_tensors(loaded.state_dict().values())
        self.items_digest = sha256_of_tensors(pair_batch(every, loaded.device))
        self.model = compiled_for_decoding(loaded, config.loading.compile)


class LanguageEvaluation(Evaluation[Item]):
    """Items are passages and questions, by task. All models are held in memory together."""

    command, word = "language", "item"

    def __init__(self, config: LanguageEvalConfig):
        super().__init__(config)
        self.config = config

    @cached_property
    def systems(self) -> list[LanguageSystem]:
        """The models with their items."""
        config = self.config
        questions = {task: read_questions(task, getattr(config, task)) for task in dict.fromkeys(config.tasks)}
        return [LanguageSystem(name, config, questions) for name in config.model_names()]

    def settings(self) -> dict[str, Any]:
        digests = {
            "weights_sha256": {system.name: system.weights_digest for system in self.systems},
            "items_sha256": {system.name: system.items_digest for system in self.systems},
        }
        return run_settings(self.config) | digests

    def units(self) -> list[Unit[Item]]:
        return [unit for system in self.systems for unit in self.units_of(system)]

    def units_of(self, system: LanguageSystem) -> list[Unit[Item]]:
        """All work of one model, in batches of items whose contexts are of like length."""
        units = []
        for task, items in system.items.items():
            ordered = sorted(items, key=lambda item: len(item.pairs[0].context), reverse=True)
            for variant in self.config.variants(task):
                for trial in range(self.config.trials_of(variant)):
                    for batch, some in enumerate(batches(ordered, self.config.batch_size)):
                        key: dict[str, Any] = {"model": system.name, "task": task, "variant": variant.name}
                        key |= {"trial": trial, "batch": batch}
                        units.append(Unit(key, variant, some, f"{task} {variant.name}", system))
        return units

    def describe(self, todo: int, total: int) -> str:
        counts = ", ".join(f"{len(some)} of {task}" for task, some in self.systems[0].items.items())
        return f"{counts}; {todo} of {total} lines to do"

    def run(self, unit: Unit[Item]) -> list[dict]:
        items, system = list(unit.items), unit.system
        if unit.variant.name != LIKELIHOOD:
            lines = sample_lambada(system.model, system.codec, unit, self.config.seed)
        elif unit.key["task"] == "lambada":
            lines = likelihood_lambada(system.model, items, self.config.batch_size)
        else:
            lines = likelihood_hellaswag(system.model, items, self.config.batch_size)
        # cut: tokens of the context that the model could not take
        cuts = [max(pair.cut for pair in item.pairs) for item in items]
        abouts = [unit.key | {"index": item.number, "cut": cut} for item, cut in zip(items, cuts, strict=True)]
        return [about | line for about, line in zip(abouts, lines, strict=True)]

    def report(self) -> dict:
        """Write metrics.json and table.md. Returns the metrics."""
        metrics = summarise(self.lines())
        self.write_results(metrics, table_md=table(metrics))
        return metrics

    def summary(self, metrics: dict) -> str:
        return summary(metrics)


def evaluate(config: LanguageEvalConfig) -> dict:
    """Run what is left to run, then write metrics.json and table.md to output_dir. Returns the metrics."""
    return LanguageEvaluation(config).complete()
