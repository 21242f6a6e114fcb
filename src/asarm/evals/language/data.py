"""Passages of LAMBADA and questions of HellaSwag."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from asarm.data.readers import read_text
from asarm.evals.hub import hub_rows
from asarm.utils.errors import InputError
from asarm.utils.jsonl import parse_row

LAMBADA = ("cimec/lambada", "test")
HELLASWAG = ("Rowan/hellaswag", "validation")  # the labels of its test part are kept secret


class Question(NamedTuple):
    """A context, what may follow it, and which of that is right. Endings begin with their space."""

    context: str
    endings: list[str]
    label: int


def lambada_questions(path: str) -> list[Question]:
    """Passages without their last word, and that word. Raises InputError, with the line, for what is no passage."""
    passages = file_lines(path) if path else [row["text"] for row in hub_rows(LAMBADA, "--lambada")]
    source = path or LAMBADA[0]
    questions = []
    for number, passage in enumerate(passages, 1):
        context, _, word = passage.strip().rpartition(" ")
        if not context:
            raise InputError(f"{source}, passage {number} must have at least two words, not {word!r}: correct it")
        questions.append(Question(context, [" " + word], 0))
    return questions


def hellaswag_questions(path: str) -> list[Question]:
    """Questions with their endings. Raises InputError, with the line, for what is not such a question."""
    rows: Sequence[str | dict] = file_lines(path) if path else hub_rows(HELLASWAG, "--hellaswag")
    source = path or HELLASWAG[0]
    return [hellaswag_question(row, f"{source}, question {number}") for number, row in enumerate(rows, 1)]


def hellaswag_question(row: str | dict, where: str) -> Question:
    """One question. Its context is `activity_label: ctx_a Ctx_b`, as in the harness, or else the field ctx alone."""
    if isinstance(row, str):
        row = parse_row(row, where)
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


def file_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file; the last may be without its end. InputError when it cannot be read, or is empty."""
    return read_text(path).removesuffix("\n").split("\n")


READERS = {"lambada": lambada_questions, "hellaswag": hellaswag_questions}


def read_questions(task: str, path: str) -> list[Question]:
    """The questions of a task, from a file, or from the Hub where path is ""."""
    return READERS[task](path)
