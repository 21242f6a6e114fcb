"""Readers of the results of evaluations."""

import html.parser
import json
import shutil
from pathlib import Path

from asarm.utils.jsonl import read_json_lines


def lines_of(folder: Path) -> list[dict]:
    """The lines of a run."""
    return read_json_lines(folder / "samples.jsonl")


def without_times(lines: list[dict], *fields: str) -> list[str]:
    """Lines that can be compared: sorted, without times and the fields named."""
    dropped = dict.fromkeys(("seconds", *fields))
    return sorted(json.dumps(line | dropped, sort_keys=True) for line in lines)


def interrupted_copy(finished: Path, folder: Path, kept: float, *others: str) -> bytes:
    """A copy of a finished run of which only a share of the lines' bytes was written. Returns those of `samples.jsonl`.

    others: files that are cut in the same way.
    """
    shutil.copytree(finished, folder)
    for name in ("samples.jsonl", *others):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(kept * len(whole))])
    return (finished / "samples.jsonl").read_bytes()


class _Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], "", set()

    def handle_starttag(self, tag, attributes):
        assert not {"src", "href"} & dict(attributes).keys()  # nothing is loaded from elsewhere
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(path: Path) -> tuple[str, set[str]]:
    """The text of an HTML page and the names of its tags; fails if tags do not match or it loads anything."""
    page, reader = path.read_text(encoding="utf-8"), _Reader()
    reader.feed(page)
    assert reader.open == []
    assert "url(" not in page
    return reader.text, reader.tags
