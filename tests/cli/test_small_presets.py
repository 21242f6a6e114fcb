"""The presets `small`: a pretrained model with bundled adapters, on a CPU, on texts of the package."""

import pytest

from asarm.cli import code, decode, language, stories


@pytest.mark.parametrize(
    ("command", "arguments", "model"),
    [
        (decode, ["small"], "smollm2-text"),
        (decode, ["ablate-k", "small"], "smollm2-text"),
        (decode, ["ablate-tolerance", "small"], "smollm2-text"),
        (stories, ["small"], "smollm2-text"),
        (language, ["small"], "smollm2-text"),
        (code, ["small"], "smollm2-code"),
    ],
)
def test_the_adapters_are_run_on_a_cpu(command, arguments, model):
    config = command.parse_arguments(arguments)
    assert (config.model_names(), config.loading.device) == ([model], "cpu")


@pytest.mark.parametrize("command", [decode, stories, code])
def test_texts_are_decoded_alone(command):
    config = command.parse_arguments(["small"])
    sampling = config.sampling
    assert (config.batch_size, sampling.k, sampling.coupling, sampling.alternatives) == (1, 3, "block", 2)


def test_decoding_is_budgeted():
    """Texts are decoded alone, each by each sampler once: 12 decodings of about six seconds on two cores."""
    config = decode.parse_arguments(["small"])
    assert config.judge == "smollm2"
    assert [config.batch_size_of(variant) for variant in config.variants()] == [1] * 3
    assert {variant.max_items for variant in config.variants()} == {4}
