"""Python sources of this installation as a corpus to train on: `python -m asarm sources OUTPUT.jsonl [options]`.

Writes one file a line, with its path in the installation and its text. `train --train_files OUTPUT.jsonl` takes it.
"""

import argparse
import json
from pathlib import Path

from asarm.errors import InputError
from asarm.files import write_whole
from asarm.sources import Evaluation, installed_files, python_sources


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="asarm sources", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", help="JSON-lines file to write")
    parser.add_argument("--folders", nargs="+", default=[], help="instead of the standard library and site-packages")
    parser.add_argument(
        "--exclude", nargs="+", required=True, help="JSON-lines files of the evaluation sets to leave out, or `none`"
    )
    settings = parser.parse_args(arguments)
    evaluation = Evaluation.read([] if settings.exclude == ["none"] else settings.exclude)
    files = installed_files(settings.folders)
    count = characters = 0

    def write(temporary: Path) -> None:
        nonlocal count, characters
        with temporary.open("w", encoding="utf-8") as output:
            for path, text in python_sources(files, evaluation):
                output.write(json.dumps({"path": "/".join(path.parts[-3:]), "text": text}) + "\n")
                count, characters = count + 1, characters + len(text)
        if not count:
            raise InputError("no file is left to train on")

    write_whole(settings.output, write)
    print(f"{count} of {len(files)} files, {characters / 1e6:.1f} million characters: {settings.output}")
