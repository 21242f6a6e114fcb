"""Many texts from a file, filled in batches; results in a file of JSON lines, to which an interrupted run adds."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from asarm.data.rows import TEXT, check_text, lines_of, opened, read_rows, text_of
from asarm.filling.infiller import Filling, Infiller
from asarm.tokenization.batch import InfillBatch
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_text
from asarm.utils.folder_lock import locked
from asarm.utils.jsonl import read_json_lines, write_json_lines


def texts_of(path: str, lines: bool = False) -> list[tuple[str, str]]:
    """The texts of a file, each with its name for messages.

    Of JSON lines, JSON, CSV and parquet the field `text` of each row; plain text is one text as a whole or, with
    `lines`, one a line. Raises InputError for what cannot be read, and if there is none.
    """
    with opened(Path(path)) as (file, kind):
        if kind == TEXT and not lines:
            return [(path, check_text(text_of(file).read(), path).removesuffix("\n"))]
        if kind == TEXT:
            found = [(f"{path}, line {number}", line.removesuffix("\n")) for number, line in lines_of(file, Path(path))]
            if not found:
                raise InputError(f"{path} is empty")
            return found
    return [(row.where, row.fields["text"]) for row in read_rows(path, ["text"])]


def parsed(infiller: Infiller, texts: Sequence[tuple[str, str]]) -> list[InfillBatch]:
    """All texts as batches of one. Raises InputError with the name of the first that cannot be used."""
    found = []
    for where, text in texts:
        try:
            found.append(infiller.parse(text))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return found


def as_line(index: int, text: str, fillings: Sequence[Filling], settings: str) -> dict[str, Any]:
    """One text with its fillings, as a JSON object."""
    found = [asdict(one) for one in fillings]
    for one in found:
        del one["target"]
        one["spans"] = [{"text": span[0], "label": span[1]} for span in one["spans"]]
        if one["trace"] is None:
            del one["trace"]
    return {"index": index, "text": text, "fillings": found, "settings": settings}


def fill_file(
    texts: Sequence[tuple[str, str]],
    fill: Callable[[list[int]], list[list[Filling]]],
    batch_size: int,
    output: str,
    settings: dict[str, Any],
) -> Iterator[tuple[int, list[Filling]]]:
    """Fill texts, and yield the index of each and its fillings as they come.

    fill: makes the fillings of the texts with these indices, as a batch. output: a file to which a line is added for
    each text, and of which texts that it has already are skipped; "" for none. settings: what the results depend on.

    Raises InputError if the file was written with other settings or texts.
    """
    digest = sha256_of_text(json.dumps([settings, [text for _, text in texts]], sort_keys=True, default=str))[:16]
    if not output:
        yield from _filled(texts, fill, batch_size, list(range(len(texts))))
        return
    with locked(output, beside=True):
        lines = read_json_lines(output)
        if any(line.get("settings") != digest for line in lines):
            raise InputError(f"{output} has results of other settings or texts: choose another output, or delete it")
        done = {line["index"] for line in lines}
        write_json_lines(output, lines)  # without half a line
        with open(output, "a", encoding="utf-8") as file:
            for index, fillings in _filled(texts, fill, batch_size, [i for i in range(len(texts)) if i not in done]):
                file.write(json.dumps(as_line(index, texts[index][1], fillings, digest)) + "\n")
                file.flush()
                yield index, fillings


def _filled(
    texts: Sequence[tuple[str, str]],
    fill: Callable[[list[int]], list[list[Filling]]],
    batch_size: int,
    indices: list[int],
) -> Iterator[tuple[int, list[Filling]]]:
    with tqdm(total=len(texts), initial=len(texts) - len(indices), desc="texts", unit="text") as bar:
        for start in range(0, len(indices), batch_size):
            some = indices[start : start + batch_size]
            for index, fillings in zip(some, fill(some), strict=True):
                yield index, fillings
                bar.update()
