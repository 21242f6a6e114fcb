"""Results are never half written: everything goes to a temporary name and is then renamed."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch


def write_whole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file or folder under a temporary name beside `path`, then put it in the place of `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    old = path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    write(temporary)
    if path.is_dir():
        path.rename(old)
    temporary.rename(path)
    if old.is_dir():
        shutil.rmtree(old)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(value, indent=2) + "\n")


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
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def sha256_of_text(program: str) -> str:
    """SHA-256 of a program's text, in hexadecimal."""
    return hashlib.sha256(program.encode("utf-8", "surrogatepass")).hexdigest()
