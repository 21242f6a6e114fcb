"""A language model's own writing as a corpus to adapt it on: `python -m asarm write OUTPUT.jsonl [options]`.

Writes JSON lines with `kind` and `text`, for `train --train_files OUTPUT.jsonl`. Texts that repeat themselves, speak of
themselves or use slurs are left out, and all are cut at a sentence's end. With --clean, files of such lines are
filtered in the same way instead.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from asarm.data.filters import has_slur
from asarm.data.rows import read_rows
from asarm.data.writing_prompts import prose
from asarm.utils.files import write_whole
from asarm.utils.folder_lock import locked


def main(arguments: list[str]) -> None:
    """Run the command with its command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="asarm write", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", help="JSON-lines file to write")
    parser.add_argument("--clean", nargs="+", metavar="FILE", help="filter the texts of these JSON-lines files instead")
    settings = parser.parse_args(arguments)
    output = Path(settings.output)
    with locked(output, beside=True):
        if settings.clean:
            write_whole(output, lambda temporary: clean(settings.clean, temporary))


def clean(files: list[str], output: Path) -> None:
    """Write the texts of files that are worth training on, each once, and print how many are left of each kind."""
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    with output.open("w", encoding="utf-8") as file:
        for row in (row for path in files for row in read_rows(path, ["text"])):
            kind, text = str(row.fields.get("kind", "texts")), row.fields["text"]
            counts[f"{kind} before"] += 1
            texts = [text] * (not has_slur(text)) if kind == "functions" else prose(text)
            for text in (text for text in texts if text not in seen):
                seen.add(text)
                counts[kind] += 1
                file.write(json.dumps({"kind": kind, "text": text}) + "\n")
    for kind in sorted(kind for kind in counts if not kind.endswith(" before")):
        print(f"{kind}: {counts[kind]} of {counts[kind + ' before']} texts")
