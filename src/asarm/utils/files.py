"""Atomic writes, so that results are never half written; names of files; SHA-256 of files, tensors and strings."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file or folder under a temporary name beside `path`, then rename it to `path`.

    What was at `path` before is replaced, and left as it was if `write` raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    old = path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):
        _delete(leftover)
    try:
        write(temporary)
    except BaseException:
        _delete(temporary)  # half of a model may fill the disk
        raise
    if path.is_dir():
        path.rename(old)
    temporary.rename(path)
    if old.is_dir():
        shutil.rmtree(old)


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def file_name(name: str) -> str:
    """A model's or variant's name as that of a file."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-100:]


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def sha256_of_tensors(tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 of tensors' contents, in hexadecimal."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def sha256_of_text(text: str) -> str:
    """SHA-256 of a string in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
