import sys

import pytest

from asarm.data.tokenizer_training import train_tokenizer
from asarm.models.conversion.vocabulary import add_gap_end_token
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.sampling import adaptive_window
from asarm.tokenization.codec import TextCodec
from support.wrappers import bare, repo  # noqa: F401 (fixtures of all tests)


@pytest.fixture(autouse=True)
def any_precision():
    """A process has one precision for all its trainers: forget it after each test."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def no_kept_latencies(monkeypatch, tmp_path_factory):
    """Tests leave nothing in the user's cache, and find nothing there."""
    monkeypatch.setattr(adaptive_window, "LATENCIES", tmp_path_factory.getbasetemp() / "latencies")


@pytest.fixture(scope="session")
def sample_text() -> str:
    """A few sentences, some of them with characters of several bytes."""
    return (
        "Once upon a time there lived in a forest an old bear who was unable to sleep.\n"
        "\u201cIs it morning?\u201d he asked the owl in the tree, and the owl said that it was not.\n"
        "So he walked to the king\u2019s castle; the caf\u00e9 by the castle was closed, and the king lived alone.\n"
        "In the morning the bear lived in a castle, and the king in a tree \u2014 who would have thought it?\n"
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, sample_text) -> str:
    """A model folder with random weights: 2 layers x 32, 128 positions, byte-level BPE of 300 tokens."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), train_tokenizer([sample_text], vocab_size=300))


@pytest.fixture(scope="session")
def ending_folder(tmp_path_factory, sample_text) -> str:
    """The same, of a model that can end gaps, and often does."""
    tokenizer = train_tokenizer([sample_text], vocab_size=300)
    add_gap_end_token(tokenizer)
    return save_tiny_model(tmp_path_factory.mktemp("ending"), tokenizer)


def save_tiny_model(folder, tokenizer) -> str:
    import torch

    gap_end = TextCodec(tokenizer).gap_end_token_id
    config = AnyOrderGPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        gap_end_token_id=gap_end,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AnyOrderGPT2(config)
    if gap_end is not None:
        with torch.no_grad():
            model.wte.weight[gap_end] *= -25  # which makes it likely at some positions, and unlikely at others
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
