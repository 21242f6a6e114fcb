"""What evaluations load from the Hub: datasets, and left-to-right language models."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from asarm.data.rows import Row, checked_rows
from asarm.models.load import model_folder, read_tokenizer
from asarm.utils.errors import InputError
from asarm.utils.hub_errors import as_input_error, config_errors
from asarm.utils.weights import read_weights


def hub_rows(source: tuple[str, ...], instead: str, texts: Sequence[str] = ()) -> list[Row]:
    """All rows of a dataset on the Hub. source: its name, its configuration if it has several, and the split.

    texts: fields that must hold texts. Raises InputError, naming the option to use instead, when it cannot be had, and
    as `checked_rows` does.
    """
    return list(_read_rows(source, instead, texts, streaming=False))


def hub_stream(source: tuple[str, ...], instead: str, texts: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a dataset on the Hub, downloaded as they are read. See `hub_rows`."""
    return _read_rows(source, instead, texts, streaming=True)


def _read_rows(source: tuple[str, ...], instead: str, texts: Sequence[str], streaming: bool) -> Iterator[Row]:
    from datasets import load_dataset  # slow to import
    from datasets.exceptions import DatasetsError

    name, *configuration, split = source

    def message(reason: str) -> str:
        return f"cannot load {name} from the Hub ({reason}): give a local file with {instead}"

    with as_input_error(message, OSError, ValueError, DatasetsError):
        rows: Iterable[Any] = load_dataset(name, *configuration, split=split, streaming=streaming)
        numbered = (Row(f"{name}, row {number}", row) for number, row in enumerate(rows, 1))
        yield from checked_rows(numbered, texts)


def load_causal(name: str, role: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model of the Hub or a folder, in float32, in evaluation mode, and its tokenizer.

    role: what it is for, in the message of the InputError when it cannot be loaded.
    """
    about = f"the {role} {name}"
    try:
        folder = model_folder(name)
    except InputError as error:
        raise InputError(f"cannot load {about}: {error}") from error
    with config_errors(about):
        config = AutoConfig.from_pretrained(folder)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"cannot load {about}: {config.model_type} models are no causal language models")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # Older checkpoints also hold constants that models compute by now.
    model = read_weights(model_class, about, folder, torch.float32, strict=False)
    return model.to(device), read_tokenizer(about, folder)
