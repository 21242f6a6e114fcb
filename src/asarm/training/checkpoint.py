"""Checkpoints: folders `checkpoint-000200` in a run's folder, each of which is either whole or counts as missing.

    model/            a model folder like any other
    optimizer.pt      state of the optimiser
    data.json         where the readers of a streamed dataset are; {} for local files
    checkpoint.json   the manifest: step, score and the SHA-256 of every other file

A folder is written under a temporary name, flushed to the disk and then renamed.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_file, write_whole

logger = logging.getLogger(__name__)
MANIFEST = "checkpoint.json"


def write_state(
    folder: Path, write_model: Callable[[Path], None], optimizer: dict, reader_states: dict[int, dict]
) -> None:
    """Write everything but the manifest into a checkpoint's folder. write_model: writes a model folder."""
    write_model(folder / "model")
    torch.save(optimizer, folder / "optimizer.pt")
    (folder / "data.json").write_text(json.dumps(reader_states) + "\n", encoding="utf-8")


def read_optimizer_state(folder: Path) -> dict:
    """The state of the optimiser, on the CPU."""
    return torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)


def read_reader_states(folder: Path) -> dict[int, dict]:
    """The states of the readers of a streamed dataset; {} for local files."""
    saved = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    return {int(reader): state for reader, state in saved.items()}


def save(output: Path, step: int, score: float | None, write: Callable[[Path], None]) -> Path:
    """Let `write` fill the checkpoint of a step, and add the manifest. Returns its folder.

    score: of the validation at this step, lower is better; None if there was none. Raises InputError when the
    checkpoint cannot be written, for example on a full disk; an earlier one of the same step is then left as it was.
    """
    folder = output / f"checkpoint-{step:06d}"

    def fill(path: Path) -> None:
        try:
            path.mkdir()
            write(path)
            files = {str(f.relative_to(path)): sha256_of_file(f) for f in sorted(path.rglob("*")) if f.is_file()}
            manifest = {"step": step, "score": score, "files": files}
            (path / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            for name in [*files, MANIFEST]:
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


def read_manifest(folder: Path) -> dict:
    """The manifest of a checkpoint. Raises InputError when a file is missing or is not as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest["files"].items():
            if sha256_of_file(folder / name) != digest:
                raise InputError(f"{folder} is torn: {name} is not as it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is torn, or no checkpoint: {error}") from error
    return manifest


def folders(output: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if path.is_dir()]
    return sorted(found, key=lambda path: (len(path.name), path.name))  # those of millions of steps have longer names


def newest(output: Path) -> Path | None:
    """The newest whole checkpoint, if there is one; torn ones are skipped with a warning."""
    for folder in reversed(folders(output)):
        try:
            read_manifest(folder)
            return folder
        except InputError as error:
            logger.warning("skipped: %s", error)
    return None


def prune(output: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the one with the best score."""
    scores: dict[Path, float] = {}
    for folder in folders(output):
        try:
            score = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["score"]
        except (OSError, ValueError, KeyError):
            continue
        if score is not None:
            scores[folder] = score
    best = min(scores, key=lambda folder: scores[folder], default=None)
    for folder in folders(output)[:-keep]:
        if folder != best:
            doomed = folder.with_name(f".{folder.name}.old")  # so that no checkpoint is ever half deleted
            shutil.rmtree(doomed, ignore_errors=True)
            folder.rename(doomed)
            shutil.rmtree(doomed)
