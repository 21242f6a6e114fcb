"""Which texts are fit to train on: without slurs, and not ones in which a model repeats itself; and their trimming.

The slurs are in `slurs.txt`, which says which those are.
"""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

SLURS = Path(__file__).parent / "slurs.txt"
FEWEST_WORDS = 12  # of a text that is kept
PHRASE = 3  # words of the phrases that are counted to find texts that repeat themselves
MOST_REPEATED = 0.1  # share of a text's phrases that may have been there before
MOST_FOREIGN = 0.02  # share of characters that may be neither ASCII nor common punctuation
WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
# punctuation and letters that English text has besides ASCII
COMMON = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00e9\u00b0"
# A first line that speaks of the text that follows: "Here is a short story about Tom:"
PREFACE = re.compile(
    r"\s*(?:(?:sure|certainly|of course|absolutely)\b[^\n]*?[!.,:]\s+)?"
    r"(?:(?:here(?:['\u2019]s| is| are)|this is|title|the following)\b[^\n]*?:|\**(?:title|story)\b[^\n]{0,100}\n)\s*",
    re.IGNORECASE,
)
# The beginning of a paragraph that speaks of the text before it, and does not go on with it.
REMARK = re.compile(
    r"(?:\W*(?:note|explanation)\b|(?:this|the|these|that)(?: \w+)? "
    r"(?:story|stories|sentences?|text|paragraph|passage|example|poem|letter|function|response)\b"
    r"|this is (?:a|an|the|just a)(?: \w+)? (?:example|story|letter|summary)|in this (?:story|text|example|response)"
    r"|i hope (?:this|that)|please (?:let|note)|let me know|would you like|you can (?:also )?(?:replace|use|change))\b",
    re.IGNORECASE,
)
# Texts in which the model speaks of itself, or leaves blanks to fill in: "[Your Name]"
ASSISTANT = re.compile(
    r"\bas an ai\b|\bi['\u2019]m an ai\b|\blanguage model\b|\[[^\]\n]{0,20}\b(?:name|your)\b", re.IGNORECASE
)
SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)]*(?=\s|$)")


@cache
def _slur_pattern() -> re.Pattern[str]:
    lines = SLURS.read_text(encoding="utf-8").splitlines()
    words = sorted({word for line in lines if not line.startswith("#") for word in line.split()}, key=len, reverse=True)
    alternatives = "|".join(word.replace("-", r"[\s-]+") for word in words)
    # Digits and underscores end a word here, as they do in names of variables.
    return re.compile(rf"(?<![^\W\d_])(?:{alternatives})(?![^\W\d_])", re.IGNORECASE)


def slurs_in(text: str) -> list[str]:
    """The slurs in a text, as they stand there: whole words of the list, in any case."""
    return _slur_pattern().findall(text)


def has_slur(text: str) -> bool:
    """Whether a text has one of the listed slurs."""
    return _slur_pattern().search(text) is not None


def repeats_itself(text: str) -> bool:
    """Whether many phrases of three words come again, or one comes again and again, as in texts that are stuck."""
    words = WORD.findall(text.lower())
    phrases = Counter(zip(*(words[start:] for start in range(PHRASE)), strict=False))
    total = sum(phrases.values())
    if not total:
        return False
    return total - len(phrases) > MOST_REPEATED * total or max(phrases.values()) > max(4, total // 12)


def is_foreign(text: str) -> bool:
    """Whether a text is hardly English by its characters."""
    strange = sum(not letter.isascii() and letter not in COMMON for letter in text)
    return strange > MOST_FOREIGN * len(text)


def trimmed(text: str) -> str:
    """A text without a line before it, and paragraphs after it, that speak of it, and up to its last sentence's end.

    Empty if no sentence ends.
    """
    match = PREFACE.match(text)
    paragraphs = re.split(r"\n\s*\n", text[match.end() if match else 0 :].strip())
    kept = [paragraphs[0]]
    for paragraph in paragraphs[1:]:
        if REMARK.match(paragraph.strip()):
            break
        kept.append(paragraph)
    text = "\n\n".join(kept).strip()
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def is_fit(text: str) -> bool:
    """Whether a text of prose is worth training on: long enough, English, about something, and without slurs."""
    return (
        len(WORD.findall(text)) >= FEWEST_WORDS
        and not has_slur(text)
        and not ASSISTANT.search(text)
        and not is_foreign(text)
        and not repeats_itself(text)
    )


def fit_text(text: str) -> str:
    """A generated text of prose as it is worth training on: trimmed; empty if it is not."""
    text = trimmed(text)
    return text if is_fit(text) else ""


def whole_functions(code: str) -> list[str]:
    """The functions with a docstring in Python code that may break off, be followed by prose, or stand in a fence."""
    found = []
    for part in re.split(r"^(?=def )", code, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        length = next((n for n, line in enumerate(lines[1:], 1) if line and not line[0].isspace()), None)
        if length is None:  # nothing follows: it may have been cut
            continue
        function = "\n".join(lines[:length]).rstrip()
        try:
            node = ast.parse(function).body[0]
        except (SyntaxError, ValueError, RecursionError):
            continue
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and not has_slur(function):
            found.append(function)
    return found
