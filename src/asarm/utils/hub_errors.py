"""Errors of the Hugging Face libraries, and of the network below them, as one-line `InputError`s."""

import asyncio
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)

from asarm.utils.errors import InputError, first_line

MOST_SHOWN = 300  # characters of another library's message


@contextmanager
def as_input_error(message: Callable[[str], str], *kinds: type[Exception]) -> Iterator[None]:
    """Raise `InputError(message(reason))` instead of exceptions of these kinds; an InputError passes unchanged.

    reason: the first line of what the exception says.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(message(first_line(error))) from error


@contextmanager
def config_errors(name: str | Path) -> Iterator[None]:
    """Turn errors of reading a model's config into InputError. name: of the model, for the messages."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot load {name}: {first_line(error)}") from error
    except Exception as error:  # configs check some of their values, and fail in all kinds of ways at others
        # The first line of a StrictDataclassError names the check, the next one what is wrong.
        reason = " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else first_line(error)
        if not isinstance(error, (StrictDataclassError, ValueError)):
            reason = f"{type(error).__name__}: {reason}"
        raise InputError(f"the config of {name} is not valid: {reason}") from error


@contextmanager
def download_errors(name: str | Path, revision: str) -> Iterator[None]:
    """Turn errors of the download of a model's repository into InputError."""
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"no model folder {name}, and no repository of the Hub can have this name") from error
    except GatedRepoError as error:
        raise InputError(f"{name} is gated: ask for access on its page, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"no model folder {name}, and no such repository on the Hub (if it is private: `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} has no branch, tag or commit {revision!r} on the Hub") from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else first_line(error.__cause__ or error)
        raise InputError(
            f"no model folder {name}; {name} at {revision} is not (wholly) in the cache {constants.HF_HUB_CACHE}, and "
            f"{constants.ENDPOINT} cannot be reached: {why}"
        ) from error
    except (httpx.HTTPError, OSError) as error:
        raise InputError(f"the download of {name} at {revision} failed, try again: {first_line(error)}") from error


@contextmanager
def dataset_errors(name: str) -> Iterator[None]:
    """Turn errors of opening a dataset, from a folder or the Hub, into InputError."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError  # slow to import

    try:
        yield
    except InputError:
        raise
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise InputError(
                f"the dataset {name} is gated: ask for access on its page, then log in with `hf auth login`"
            ) from error
        raise InputError(
            f"no dataset {name}, neither a folder nor on the Hub (if it is private: `hf auth login`)"
        ) from error
    except OSError as error:
        raise InputError(f"the dataset {name} cannot be reached: {first_line(error)}") from error
    except (ValueError, DatasetsError) as error:
        raise InputError(f"the dataset {name} cannot be opened: {first_line(error)}") from error


@contextmanager
def dataset_reading_errors(name: str) -> Iterator[None]:
    """Turn errors of reading a dataset that was opened into InputError: of its files, of decompression, of the network
    (after the retries of `datasets`)."""
    import pyarrow
    from datasets.exceptions import DatasetsError  # slow to import

    try:
        yield
    except InputError:
        raise
    except (
        OSError, EOFError, ValueError, asyncio.TimeoutError, zlib.error, lzma.LZMAError, pyarrow.ArrowException,
        httpx.HTTPError, httpx.StreamError, DatasetsError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:MOST_SHOWN] or type(error).__name__
        raise InputError(f"the dataset {name} cannot be read any further: {reason}") from error
