"""Checkpoints: folders `checkpoint-000200` in a run's folder, which are whole or count as not there.

A folder is written under a temporary name, flushed to the disk and then renamed; its `checkpoint.json` lists the
SHA-256 of every other file. The `model` in it is a model folder like any other.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_file, write_whole

logger = logging.getLogger(__name__)
ABOUT = "checkpoint.json"


def save(output: Path, step: int, score: float | None, write: Callable[[Path], None]) -> Path:
    """Let `write` fill the checkpoint of a step. score: of its validation, lower is better; None if there was none.

    Raises InputError when it cannot be written, on a full disk say; what was there before is left as it was.
    """
    folder = output / f"checkpoint-{step:06d}"

    def fill(path: Path) -> None:
        try:
            path.mkdir()
            write(path)
            files = {str(f.relative_to(path)): sha256_of_file(f) for f in sorted(path.rglob("*")) if f.is_file()}
            about = {"step": step, "score": score, "files": files}
            (path / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            for name in [*files, ABOUT]:
                _flush(path / name)
            _flush(path)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(path, ignore_errors=True)
            free = f"{shutil.disk_usage(output).free / 2**20:.0f} MiB are free"
            reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            raise InputError(
                f"cannot write {folder} ({reason}; {free}): make room; the checkpoints before it are whole"
            ) from error

    write_whole(folder, fill)
    _flush(output)
    return folder


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def about(folder: Path) -> dict:
    """The step, the score and the files of a checkpoint. InputError when one is missing or not as it was written."""
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        for name, digest in found["files"].items():
            if sha256_of_file(folder / name) != digest:
                raise InputError(f"{folder} is torn: {name} is not as it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is torn, or no checkpoint: {error}") from error
    return found


def folders(output: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, oldest first."""
    return sorted(path for path in output.glob("checkpoint-*") if path.is_dir())


def newest(output: Path) -> Path | None:
    """The newest whole checkpoint, if there is one; torn ones are passed over with a warning."""
    for folder in reversed(folders(output)):
        try:
            about(folder)
            return folder
        except InputError as error:
            logger.warning("passed over: %s", error)
    return None


def prune(output: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the one with the best score."""
    old, scores = folders(output)[:-keep], {}
    for folder in folders(output):
        try:
            scores[folder] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["score"]
        except (OSError, ValueError, KeyError):
            continue
    scores = {folder: score for folder, score in scores.items() if score is not None}
    best = min(scores, key=scores.get, default=None)
    for folder in old:
        if folder != best:
            doomed = folder.with_name(f".{folder.name}.old")  # never a checkpoint that is half there
            shutil.rmtree(doomed, ignore_errors=True)
            folder.rename(doomed)
            shutil.rmtree(doomed)
