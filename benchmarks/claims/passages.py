"""Passages of books as a corpus of short texts, for the runs of docs/claims.md.

    python benchmarks/claims/passages.py passages.jsonl BOOK.txt ... [--count 4000]

Plain-text files with a paragraph in each line, as Project Gutenberg's are once their lines are joined. Paragraphs that
are too short or too long, not English, or with slurs are left out, and so are tables of contents. The order is random.
"""

import argparse
import json
import random
from pathlib import Path

from asarm.data.readers import read_lines
from asarm.data.writing.filters import SENTENCE_END, is_fit
from asarm.utils.errors import InputError
from asarm.utils.files import write_whole

SHORTEST, LONGEST = 200, 800  # characters


def passages(files: list[str]) -> list[str]:
    """The paragraphs of some files that are fit to train on, each once, in the order in which they stand there."""
    lines = (line.strip() for file in files for line in read_lines(file))
    fitting = (line for line in lines if SHORTEST <= len(line) <= LONGEST and SENTENCE_END.search(line))
    return list(dict.fromkeys(filter(is_fit, fitting)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("books", nargs="+", help="plain-text files")
    parser.add_argument("--count", type=int, default=4000)
    arguments = parser.parse_args()
    found = passages(arguments.books)
    if not found:
        raise InputError(f"no paragraph of {SHORTEST} to {LONGEST} characters is fit to train on")
    random.Random(0).shuffle(found)
    kept = found[: arguments.count]
    text = "".join(json.dumps({"text": passage}) + "\n" for passage in kept)
    write_whole(arguments.output, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{len(kept)} of {len(found)} passages, {sum(map(len, kept))} characters")


if __name__ == "__main__":
    main()
