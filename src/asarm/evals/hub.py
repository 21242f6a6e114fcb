"""What evaluations load from the Hub: datasets, and left-to-right language models."""

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from asarm.data.rows import Row, checked_rows
from asarm.utils.hub_errors import as_input_error


def hub_rows(source: tuple[str, ...], instead: str, texts: Sequence[str] = ()) -> list[Row]:
    """All rows of a dataset on the Hub. source: its name, its configuration if it has several, and the split.

    texts: fields that must hold texts. Raises InputError, naming the option to use instead, when it cannot be had, and
    as `checked_rows` does.
    """
    from datasets import load_dataset  # slow to import
    from datasets.exceptions import DatasetsError

    name, *configuration, split = source

    def message(reason: str) -> str:
        return f"cannot load {name} from the Hub ({reason}): give a local file with {instead}"

    with as_input_error(message, OSError, ValueError, DatasetsError):
        rows = list(load_dataset(name, *configuration, split=split))
    return list(checked_rows((Row(f"{name}, row {number}", row) for number, row in enumerate(rows, 1)), texts))


def load_causal(name: str, role: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model of the Hub or a folder, in float32, in evaluation mode, and its tokenizer.

    role: what it is for, in the message of the InputError when it cannot be loaded.
    """
    with as_input_error(
        lambda reason: f"cannot load the {role} {name}: {reason}", OSError, ValueError, SafetensorError
    ):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
    return model.eval().to(device), tokenizer
