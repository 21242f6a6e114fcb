"""Stories of five sentences from a Story Cloze file, and the tokens of one with a gap in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asarm.data.rows import read_rows
from asarm.evals.infilling.example import InfillExample, without_mask_token
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError

# Sentences that are masked: the first, and the one after the last, counted from 0.
TASKS = {"1/5": (2, 3), "3/5": (1, 4)}
SENTENCES = [f"InputSentence{number}" for number in range(1, 5)]
ENDINGS = {"1": "RandomFifthSentenceQuiz1", "2": "RandomFifthSentenceQuiz2"}
COLUMNS = ["InputStoryid", *SENTENCES, *ENDINGS.values(), "AnswerRightEnding"]
SOURCE = (
    "the stories are given out on request by the authors of the Story Cloze Test "
    "(https://cs.rochester.edu/nlp/rocstories/)"
)


@dataclass
class Story:
    """index: number in the file, from 0. name: its InputStoryid. sentences: five, the last with the right ending."""

    index: int
    name: str
    sentences: list[str]


@dataclass(kw_only=True)
class StoryExample(InfillExample):
    """A story with a gap. prefix, reference, suffix: texts. visible: tokens of each sentence that is not masked."""

    prefix: str
    reference: str
    suffix: str


def read_stories(path: str | Path) -> list[Story]:
    """All stories of a file of rows with the columns of the Story Cloze Test, in its order.

    Raises InputError as `read_rows` does, when a column or a sentence is missing, or the right ending is not known.
    """
    if not Path(path).exists():
        raise InputError(f"no stories at {path}: {SOURCE}; put their CSV file there, or name it with --stories")
    rows = read_rows(path, (*SENTENCES, *ENDINGS.values()), ("InputStoryid", "AnswerRightEnding"))
    return [_story(where, index, row) for index, (where, row) in enumerate(rows)]


def _story(where: str, index: int, row: dict[str, Any]) -> Story:
    where = f"{where} ({row['InputStoryid']})"
    answer = str(row["AnswerRightEnding"]).strip()
    if answer not in ENDINGS:
        raise InputError(f"{where}: AnswerRightEnding must be 1 or 2, not {answer!r}")
    columns = [*SENTENCES, ENDINGS[answer]]
    sentences = [" ".join(row[column].split()) for column in columns]
    for column, sentence in zip(columns, sentences, strict=True):
        if not sentence:
            raise InputError(f"{where}: {column} is empty")
    return Story(index, str(row["InputStoryid"] or index), sentences)


def make_example(story: Story, task: str, codec: TextCodec) -> StoryExample:
    """The story with the sentences of `task` (see TASKS) masked. Raises InputError when it holds the mask token.

    A sentence's leading space belongs to its first token, as these tokenizers have it.
    """
    first, after = TASKS[task]
    parts = [story.sentences[:first], story.sentences[first:after], story.sentences[after:]]
    prefix, reference, suffix = map(" ".join, parts)
    prefix_tokens, reference_tokens, suffix_tokens = map(codec.encode, (prefix, " " + reference, " " + suffix))
    visible = [len(codec.encode(" " + sentence)) for sentence in parts[0] + parts[2]]
    example = StoryExample(
        index=story.index,
        name=story.name,
        prefix_tokens=prefix_tokens,
        reference_tokens=reference_tokens,
        suffix_tokens=suffix_tokens,
        visible=visible,
        prefix=prefix,
        reference=reference,
        suffix=suffix,
    )
    return without_mask_token(example, codec, "story")


def bag_text(stories: list[Story], story: Story | StoryExample, task: str, seed: int) -> str:
    """The sentences that `task` masks, of a random other story: a baseline that reads nothing of this one."""
    first, after = TASKS[task]
    pick = seed % (len(stories) - 1)
    other = stories[pick + (pick >= story.index)]
    return " ".join(other.sentences[first:after])
