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
        (["small"], {"init_from": "smollm2", "lora_rank": 16, "train_files": ["stdlib"]}),
        (["small", "--train_files", "a.txt"], {"train_files": ["a.txt"], "extensions": [".txt", ".jsonl", ".parquet"]}),
        (["paper-nlp"], {"dataset": "Skylion007/openwebtext", "mask_low": 0.85, "learning_rate": 1e-5}),
        (["paper-nlp-infill"], {"mask_start": 0.15, "mask_low": 0.6, "mask_high": 0.75}),
        (["paper-code"], {"dataset": "bigcode/starcoderdata", "dataset_dir": "python", "block_size": 512}),
        (["paper-code-single-line"], {"mask_start": 0.01, "mask_low": 0.05, "mask_high": 0.25}),
        (["paper-code", "--train_files", "src"], {"dataset": "", "train_files": ["src"], "mask_low": 0.85}),
        (["tiny", "--dataset", "d"], {"dataset": "d", "train_files": []}),
        (["paper-code", "--train-files", "src"], {"dataset": "", "train_files": ["src"]}),
        (["paper-nlp-continued", "--init_from", "m"], {"init_from": "m", "init_revision": "", "mask_low": 0.9}),
    ],
)
def test_presets(arguments, expected):
    values = flat(parse_arguments(arguments))
    assert {name: values[name] for name in expected} == expected
    assert values["output_dir"] == f"results/train-{arguments[0]}"


@pytest.mark.parametrize(
    ("preset", "sequences", "texts", "peak", "rates"),
    [
        ("paper-nlp", 24_000_000, 32, 1e-5, (0.15, 0.85, 0.99)),
        ("paper-nlp-continued", 120_000_000, 384, 1.2e-4, (0.90, 0.90, 0.99)),
        ("paper-nlp-infill", 120_000_000, 256, 8e-5, (0.15, 0.60, 0.75)),
        ("paper-code", 24_000_000, 32, 1e-5, (0.15, 0.85, 0.99)),
        ("paper-code-single-line", 120_000_000, 256, 8e-5, (0.01, 0.05, 0.25)),
    ],
)
def test_recipes_of_the_paper(preset, sequences, texts, peak, rates):
    config = parse_arguments([preset])
    assert config.sequences_per_step(1) == texts
    assert config.training.max_steps * texts == sequences
    assert config.training.learning_rate * config.learning_rate_scale(1) == pytest.approx(peak)
    assert (config.masking.mask_start, config.masking.mask_low, config.masking.mask_high) == rates
    assert config.masking.mask_warmup_steps == config.training.warmup_steps
    assert config.data.document_end == "tokenizer"
    start = ("therealgabeguo/ASARM", "nlp") if preset.endswith("continued") else ("xlnet/xlnet-base-cased", "")
    assert (config.training.init_from, config.training.init_revision) == start


def test_unknown_names():
    with pytest.raises(InputError, match="unknown preset 'papper'"):
        parse_arguments(["papper"])
    with pytest.raises(ValueError, match="no train_files"):
        parse_arguments(["--output_dir", "x"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--vocab_size", "-5"),
        ("--seed", "-1"),
        ("--seed", str(2**32)),
        ("--num_workers", "-1"),
        ("--preprocessing_num_workers", "-1"),
    ],
)
def test_numbers_that_cannot_be_are_named(option, value):
    with pytest.raises(InputError, match=f"{option[2:]} must be .* not {value}"):
        parse_arguments(["tiny", option, value])
