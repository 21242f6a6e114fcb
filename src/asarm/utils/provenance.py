"""Provenance of results: versions, git revision, device."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from asarm.utils.errors import first_line


def git_revision() -> str:
    """Commit of the source tree this package runs from, or "unknown" when it was installed as a copy."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor_name() -> str:
    """The model of this machine's processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def device_name(device: torch.device | str | None = None) -> str:
    """What results were made on. device: None or "auto" is a GPU if there is one."""
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def why_no_gpu() -> str | None:
    """Why torch does not see the GPU whose driver is loaded on this machine; None where nothing is wrong."""
    if torch.cuda.is_available() or not NVIDIA_DRIVER.exists():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:  # says that the driver is too old, or what else is wrong
        return first_line(error)
    return None


def provenance(device: torch.device | str | None = None) -> dict[str, str]:
    """Versions, and the device as in `device_name`, to be written with every result."""
    return {
        "git": git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "device": device_name(device),
    }
