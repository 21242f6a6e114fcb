"""Passages of LAMBADA and questions of HellaSwag."""

import re
from typing import Any, NamedTuple

from asarm.data.readers import read_texts
from asarm.data.rows import read_rows
from asarm.evals.hub import hub_rows
from asarm.utils.errors import InputError

LAMBADA = ("cimec/lambada", "test")
HELLASWAG = ("Rowan/hellaswag", "validation")  # the labels of its test part are kept secret


class Question(NamedTuple):
    """A context, what may follow it, and which of that is right. Endings begin with their space."""

    context: str
    endings: list[str]
    label: int


def lambada_questions(path: str) -> list[Question]:
    """Passages without their last word, and that word: lines of a text file, or rows with the field text.

    Raises InputError, with the line, for what is no passage.
    """
    if path:
        passages = read_texts(path)
    else:
        passages = [(where, row["text"]) for where, row in hub_rows(LAMBADA, "--lambada", ["text"])]
    questions = []
    for where, passage in passages:
        context, _, word = passage.strip().rpartition(" ")
        if not context:
            raise InputError(f"{where} must have at least two words, not {word!r}: correct it")
        questions.append(Question(context, [" " + word], 0))
    return questions


def hellaswag_questions(path: str) -> list[Question]:
    """Questions with their endings. Raises InputError, with the line, for what is not such a question."""
    rows = read_rows(path, ()) if path else hub_rows(HELLASWAG, "--hellaswag")
    return [hellaswag_question(row, where) for where, row in rows]


def hellaswag_question(row: dict[str, Any], where: str) -> Question:
    """One question. Its context is `activity_label: ctx_a Ctx_b`, as in the harness, or else the field ctx alone."""
    parts = [part for name in ("activity_label", "ctx_a", "ctx_b") if isinstance(part := row.get(name), str)]
    if len(parts) == 3:
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
    """HellaSwag's text without the markup that WikiHow left in it, exactly as the harness does it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub("\\[.*?\\]", "", text).replace("  ", " ")


READERS = {"lambada": lambada_questions, "hellaswag": hellaswag_questions}


def read_questions(task: str, path: str) -> list[Question]:
    """The questions of a task, from a file, or from the Hub where path is ""."""
    return READERS[task](path)
