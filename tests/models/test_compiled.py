"""Decoding steps of static shape: the same tokens as from the plain model, few shapes, and a fallback with a reason."""

import logging
import shutil

import pytest
import torch

from asarm.models import compiled
from asarm.models.compiled import CompiledModel, compiled_for_decoding
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.utils.errors import InputError
from support.models import tiny_gpt2, tiny_llama, tiny_xlnet

SETTINGS = {
    "sequential": SamplerConfig(sampler="sequential"),
    "assd self": SamplerConfig(k=5, temperature=0.8),
    "assd ngram": SamplerConfig(draft="ngram", coupling="gumbel", k=7),
    "fused": SamplerConfig(sampler="fused", k=3),
    "parallel": SamplerConfig(sampler="parallel", steps=3),
}
BACKBONES = pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])


def random_batch(batch: int, length: int) -> InfillBatch:
    """Random sequences with different numbers of given tokens, so that rows end one by one."""
    generator = torch.Generator().manual_seed(batch)
    tokens = torch.randint(0, 19, (batch, length), generator=generator)
    given = torch.rand(batch, length, generator=generator) < torch.linspace(0.1, 0.9, batch)[:, None]
    return InfillBatch(tokens, given, ~given)


def assert_same(model, stand_in, batch: int, length: int, config: SamplerConfig) -> None:
    inputs = random_batch(batch, length)
    expected = sample(model, *inputs, config, range(batch))
    found = sample(stand_in, *inputs, config, range(batch))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.nfe, expected.nfe)


@pytest.fixture
def uncompiled(monkeypatch):
    """`torch.compile` does nothing; the list of (rows, tokens, queries) of the calls of what it was given."""
    shapes = []

    def compile(function, **options):
        def step(*arguments):
            shapes.append((*arguments[0].shape, arguments[3].shape[1]))
            return function(*arguments)

        return step

    monkeypatch.setattr(torch, "compile", compile)
    return shapes


@BACKBONES
def test_static_steps_give_the_same_tokens_with_few_shapes(backbone, uncompiled):
    model = backbone(20)
    stand_in = CompiledModel(model)
    for config in SETTINGS.values():
        for batch, length in ((1, 12), (3, 20), (6, 20), (6, 64), (5, 33)):
            assert_same(model, stand_in, batch, length, config)
    assert len(uncompiled) > 200
    assert {rows for rows, _, _ in uncompiled} == {1, 2, 4, 8}
    assert {2, 4, 8} <= {tokens for _, tokens, _ in uncompiled} <= {2, 4, 8, 16, 32}  # the widest are short prompts
    assert {2, 4, 8} <= {queries for _, _, queries in uncompiled} <= {2, 4, 8, 16, 32, 64}


@BACKBONES
def test_the_cache_keeps_its_address(backbone, uncompiled):
    """Recorded graphs read and write fixed addresses: decoding again must not make other tensors."""
    stand_in = CompiledModel(backbone(20))
    addresses = []
    for _ in range(2):
        sample(stand_in, *random_batch(6, 20), SETTINGS["assd self"], range(6))
        tensors = [t for cache in stand_in.caches.values() for t in (*cache.row_tensors(), cache.lengths)]
        addresses.append([tensor.data_ptr() for tensor in tensors])
    assert addresses[0] == addresses[1]


def test_what_an_earlier_batch_left_in_the_cache_is_not_seen(uncompiled):
    model = tiny_gpt2(20)
    stand_in = CompiledModel(model)
    assert_same(model, stand_in, 6, 20, SETTINGS["assd self"])
    with torch.inference_mode():  # the caches were made in it
        for cache in stand_in.caches.values():
            for tensor in cache.row_tensors():
                tensor.fill_(1e4)
    assert_same(model, stand_in, 5, 20, SETTINGS["assd self"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.skipif(" " in torch.__path__[0], reason="torch cannot call the compiler from a path with a space")
@BACKBONES
def test_compiled_steps_give_the_same_tokens(backbone):
    model = backbone(20)
    stand_in = CompiledModel(model)
    for name in ("sequential", "assd self", "assd ngram"):
        for batch in (1, 3):
            assert_same(model, stand_in, batch, 30, SETTINGS[name])
    assert stand_in.step is not None  # it did not fall back


def test_a_compiler_that_fails_is_named_and_done_without(monkeypatch, caplog):
    def compile(function, **options):
        def step(*arguments):
            raise RuntimeError("no compiler here\nand more lines")

        return step

    monkeypatch.setattr(torch, "compile", compile)
    model = tiny_gpt2(20)
    stand_in = CompiledModel(model)
    with caplog.at_level(logging.WARNING):
        assert_same(model, stand_in, 3, 20, SETTINGS["assd self"])
    assert caplog.messages == ["decoding without torch.compile, which failed here: no compiler here"]


def test_the_choice(monkeypatch):
    model = tiny_gpt2(20)
    assert compiled_for_decoding(model, "auto") is model  # on a CPU
    assert compiled_for_decoding(model, "off") is model
    assert isinstance(compiled_for_decoding(model, "on"), CompiledModel)
    with pytest.raises(InputError, match="compile must be one of auto, on, off, not 'maybe'"):
        compiled_for_decoding(model, "maybe")


def test_powers_of_two():
    assert [compiled.power_of_two(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]
