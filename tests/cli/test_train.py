"""The options of `asarm train`: presets, and what overrides them."""

import pytest

from asarm.cli.train import parse_arguments
from asarm.utils.config import flat
from asarm.utils.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tiny"], {"max_steps": 800, "train_files": ["stdlib"], "init_from": ""}),
        (["tiny", "--max_steps", "7"], {"max_steps": 7}),
        (["paper-nlp"], {"dataset": "Skylion007/openwebtext", "mask_low": 0.85, "learning_rate": 1e-5}),
        (["paper-nlp-infill"], {"mask_start": 0.15, "mask_low": 0.6, "mask_high": 0.75}),
        (["paper-code"], {"dataset": "bigcode/starcoderdata", "dataset_dir": "python", "block_size": 512}),
        (["paper-code-single-line"], {"mask_start": 0.01, "mask_low": 0.05, "mask_high": 0.25}),
        (["paper-code", "--train_files", "src"], {"dataset": "", "train_files": ["src"], "mask_low": 0.85}),
        (["tiny", "--dataset", "d"], {"dataset": "d", "train_files": []}),
        (["paper-code", "--train-files", "src"], {"dataset": "", "train_files": ["src"]}),
    ],
)
def test_presets(arguments, expected):
    values = flat(parse_arguments(arguments))
    assert {name: values[name] for name in expected} == expected
    assert values["output_dir"] == f"results/train-{arguments[0]}"


def test_unknown_names():
    with pytest.raises(InputError, match="unknown preset 'papper'"):
        parse_arguments(["papper"])
    with pytest.raises(ValueError, match="no train_files"):
        parse_arguments(["--output_dir", "x"])
