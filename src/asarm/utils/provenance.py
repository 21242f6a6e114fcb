"""Provenance of results: versions, git revision, device."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def git_revision() -> str:
    """Commit of the source tree this package runs from, or "unknown" when it was installed as a copy."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance() -> dict[str, str]:
    """Versions and device, to be written with every result."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    return {
        "git": git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "device": device,
    }
