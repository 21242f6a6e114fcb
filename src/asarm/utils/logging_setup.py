"""What libraries say on their own account."""

import logging
import sys

from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Silence warnings, requests and retries, and bars but for downloads: our own errors say what went wrong."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()  # the Hub's own, which the line above has disabled, too
    for name in ("httpx", "huggingface_hub", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
