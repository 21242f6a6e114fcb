"""Paths of the folders that tests read."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SOURCE = REPO / "src" / "asarm"
EVAL_DATASETS = SOURCE / "eval_datasets"
SHARED = REPO.parent / "shared" / "data"  # evaluation sets that may not be given out; tests skip without them
