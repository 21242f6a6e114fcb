"""What evaluations load from the Hub: datasets, and left-to-right language models."""

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from asarm.utils.errors import InputError, first_line


def hub_rows(source: tuple[str, ...], instead: str) -> list[dict]:
    """All rows of a dataset on the Hub. source: its name, its configuration if it has several, and the split.

    InputError, naming the option to use instead, when it cannot be had.
    """
    from datasets import load_dataset  # slow to import
    from datasets.exceptions import DatasetsError

    name, *configuration, split = source
    try:
        return list(load_dataset(name, *configuration, split=split))
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"cannot load {name} from the Hub ({first_line(error)}): give a local file with {instead}"
        ) from error


def load_causal(name: str, role: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model of the Hub or a folder, in float32, in evaluation mode, and its tokenizer.

    role: what it is for, in the message of the InputError when it cannot be loaded.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot load the {role} {name}: {first_line(error)}") from error
    return model.eval().to(device), tokenizer
