"""Logging of the libraries that commands use."""

import logging
import sys

from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Silence warnings, requests, retries and bars except those of downloads: our errors say what went wrong."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()  # those of downloads, which the line above disabled, too
    for name in ("httpx", "huggingface_hub", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
