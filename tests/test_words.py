"""The vocabulary of code and documentation: the field's terms, and none of the private words that they replaced."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import REPO, SOURCE

# Private word -> what to write instead. Parts of identifiers count as words, as in `gapped_text`.
REPLACED = {
    "law": "distribution, log-probs, conditional",
    "laws": "distributions",
    "place": "position",
    "places": "positions",
    "behind": "after",
    "in front of": "before",
    "renewed": "fold_in",
    "filler": "InfillSystem",
    "fillers": "systems",
    "gapped": "InfillExample, example",
    "lesson": "DistillationBatch",
    "lacking": "draft_depth",
    "rehearsal": "LatencyProbe",
    "settle": "commit",
    "settled": "committed, decided",
    "yardstick": "baseline",
    "anew": "again",
    "judge": "scoring model (generative perplexity), test runner",
    "judged": "verified",
}
# Ordinary idioms, options, and texts that are recorded or read by other programs.
ALLOWED = [
    (r"\bin place\b", "idiom: an operation that overwrites its argument"),
    (r"\b(take|takes|took|taking) the place of\b", "idiom"),
    (r"\bin the first place\b", "idiom"),
    (
        r"--judge\b|\b(config|self)\.judge\b|\bjudge: str\b|\"judge\"",
        "the option --judge, and the command `code judge`",
    ),
    (r"\bcode judge\b|\b_run_code_infill_eval\.sh judge\b|\basarm judge\b", "the commands"),
    (r"\bcli/judge\.py\b|\bjudge-(NAME|\{)", "the command's file, and the folder of its results"),
    (r"\bthe judge \{name\}", "error message: what --judge named"),
]
WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(REPLACED, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
PAGES = [*sorted(SOURCE.rglob("*.py")), REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


def private_words(text: str) -> Iterator[tuple[int, str]]:
    """Private words in a text, with the numbers of their lines."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, _ in ALLOWED:
            line = re.sub(pattern, "", line)
        for match in WORD.finditer(line):
            yield number, match[0].lower()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_no_private_words(path: Path):
    found = [f"line {n}: {word} -> {REPLACED[word]}" for n, word in private_words(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a law of places", ["law", "places"]),
        ("gapped_text, self.law", ["gapped", "law"]),
        ("overwritten in place; flaws replaced", []),
        ("--judge NAME, but drafts are judged", ["judged"]),
    ],
)
def test_words_are_found(text, words):
    assert [word for _, word in private_words(text)] == words
