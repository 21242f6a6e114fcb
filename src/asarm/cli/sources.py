"""Python sources of this installation as a corpus to train on: `python -m asarm sources OUTPUT.jsonl [options]`.

Writes one file per line, with the end of its path and its text, or one function per line, for
`train --train_files OUTPUT.jsonl`.
"""

import argparse
import json
from pathlib import Path

from asarm.data.python_corpus import ExcludedCode, installed_files, python_sources, short_functions
from asarm.utils.errors import InputError
from asarm.utils.files import write_whole
from asarm.utils.folder_lock import locked


def main(arguments: list[str]) -> None:
    """Run the command with its command-line arguments. Raises InputError if no file is left."""
    parser = argparse.ArgumentParser(
        prog="asarm sources", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", help="JSON-lines file to write")
    parser.add_argument("--folders", nargs="+", default=[], help="instead of the standard library and site-packages")
    parser.add_argument(
        "--exclude", nargs="+", required=True, help="JSON-lines files of the evaluation sets to leave out, or `none`"
    )
    parser.add_argument("--functions", action="store_true", help="write short functions instead of whole files")
    settings = parser.parse_args(arguments)
    excluded = ExcludedCode.read([] if settings.exclude == ["none"] else settings.exclude)
    files = installed_files(settings.folders)
    output, count, characters = Path(settings.output), 0, 0

    def write(temporary: Path) -> None:
        nonlocal count, characters
        sources = python_sources(files, excluded)
        if settings.functions:
            rows = ({"text": function} for function in short_functions(text for _, text in sources))
        else:
            rows = ({"path": "/".join(path.parts[-3:]), "text": text} for path, text in sources)
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                count, characters = count + 1, characters + len(row["text"])
        if not count:
            raise InputError("nothing is left to train on")

    with locked(output, beside=True):
        write_whole(output, write)
    counted = f"{count} functions" if settings.functions else f"{count} of {len(files)} files"
    print(f"{counted}, {characters / 1e6:.1f} million characters: {settings.output}")
