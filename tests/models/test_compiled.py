"""Decoding steps of static shape: the same tokens as from the plain model, few shapes, and a fallback with a reason."""

import copy
import logging
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

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
RULES = ("residual", "block", "gumbel")
BACKBONES = pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])


def random_batch(batch: int, length: int, seed: int = 0) -> InfillBatch:
    """Random sequences with different numbers of given tokens, so that rows end one by one."""
    generator = torch.Generator().manual_seed(batch + 100 * seed)
    tokens = torch.randint(0, 19, (batch, length), generator=generator)
    given = torch.rand(batch, length, generator=generator) < torch.linspace(0.1, 0.9, batch)[:, None]
    given[:, 1] = False
    return InfillBatch(tokens, given, ~given)


def assert_same(model, stand_in, batch: int, length: int, config: SamplerConfig) -> None:
    inputs = random_batch(batch, length)
    expected = sample(model, *inputs, config, range(batch))
    found = sample(stand_in, *inputs, config, range(batch))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.nfe, expected.nfe)


@pytest.fixture
def uncompiled(monkeypatch):
    """`torch.compile` does nothing; the list of the steps that it was given, as often as they were called."""
    calls = []

    def compile(function, **options):
        def step(*arguments):
            calls.append(function)
            return function(*arguments)

        return step

    monkeypatch.setattr(torch, "compile", compile)
    return calls


@BACKBONES
@pytest.mark.parametrize("head", [{}, {"draft_head": 8, "draft_recurrent": True}])
def test_static_steps_give_the_same_tokens(backbone, head, uncompiled):
    """Steps that see no values, idle rows, windows as wide as ever at the end of a text."""
    model = backbone(20, **head)
    stand_in = CompiledModel(model)
    for config in SETTINGS.values():
        for batch, length in ((1, 12), (3, 20), (6, 20), (6, 64), (5, 33)):
            assert_same(model, stand_in, batch, length, config)
    assert len(set(uncompiled)) == 4


class FrozenStep:
    """Instead of a CUDA graph: the step on the state as it was when recorded, whatever has been set since."""

    def __init__(self, function, pool):
        step, state, *arguments = function.args
        frozen = copy.copy(state)
        for name, value in vars(state).items():
            if any(value is part for part in state.by_row):
                setattr(frozen, name, copy.copy(value))
        self.replay = lambda: function.func(step, frozen, *arguments)


def recording(model) -> CompiledModel:
    """What stands in for a model on a GPU, without a compiler."""
    stand_in = CompiledModel(model, compiles=False)
    stand_in.records = True
    return stand_in


@BACKBONES
@pytest.mark.parametrize("head", [{}, {"draft_head": 8, "draft_recurrent": True}])
def test_recorded_steps_give_the_same_tokens(backbone, head, monkeypatch):
    """Of other batches, too: a recording reads what is in the pool by then, and is used for the same settings only."""
    monkeypatch.setattr(compiled, "Recording", FrozenStep)
    model = backbone(20, gap_end_token_id=18, **head)
    stand_in = recording(model)
    some = (SETTINGS["sequential"], SETTINGS["assd ngram"], *(SamplerConfig("fused", k=2, coupling=c) for c in RULES))
    for config in some:
        for length, seed in ((20, 2), (18, 1), (20, 0)):  # all of which are rounded up to the same
            tokens, given, target = random_batch(6, length, seed)
            tokens = tokens.masked_fill(given & target.roll(1, 1) & (torch.arange(6)[:, None] % 2 == seed), 18)
            shown = torch.rand(6, length, 20, generator=torch.Generator().manual_seed(0)) < 0.8
            for allowed in (None, shown):  # with gaps of unknown length, but for the first
                inputs = tokens, given, target, config, range(seed, 6 + seed)
                expected, found = (sample(one, *inputs, allowed=allowed) for one in (model, stand_in))
                assert torch.equal(found.tokens, expected.tokens)
                assert torch.equal(found.nfe, expected.nfe)


def test_texts_of_the_same_length_share_recordings(monkeypatch):
    made = []
    monkeypatch.setattr(compiled, "Recording", lambda *arguments: made.append(0) or FrozenStep(*arguments))
    stand_in = recording(tiny_gpt2(20))
    for text in range(5):
        tokens = torch.randint(0, 19, (1, 30), generator=torch.Generator().manual_seed(text))
        target = torch.arange(30)[None] % 3 != text % 3
        for name in ("sequential", "assd self", "fused"):
            sample(stand_in, tokens, ~target, target, SETTINGS[name], [text])
    assert len(made) <= 4


def test_what_cannot_be_recorded_is_run(monkeypatch, caplog):
    def fail(function, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nand more lines")

    monkeypatch.setattr(compiled, "Recording", fail)
    model = tiny_gpt2(20)
    with caplog.at_level(logging.WARNING):
        assert_same(model, recording(model), 3, 20, SETTINGS["fused"])
    assert caplog.messages == [
        "decoding without CUDA graphs, which failed here: operation not permitted when stream is capturing"
    ]


@BACKBONES
def test_tensors_keep_their_addresses(backbone, uncompiled):
    """Recorded graphs read and write fixed addresses: decoding again must not make other tensors."""
    stand_in = CompiledModel(backbone(20))
    addresses = []
    for _ in range(2):
        for name in ("assd self", "fused"):
            sample(stand_in, *random_batch(6, 20), SETTINGS[name], range(6))
        addresses.append({key: tensor.data_ptr() for key, tensor in stand_in.pool.items()})
    assert addresses[0] == addresses[1]
    kinds = {name[0] for name in addresses[0]}
    assert {"AssdDecoding", "FusedDecoding", "TabledRNG", "NextWindow"} <= kinds


def test_tensors_of_other_lengths_are_let_go(uncompiled):
    stand_in = CompiledModel(tiny_gpt2(20))
    sample(stand_in, *random_batch(6, 64), SETTINGS["sequential"], range(6))
    before = len(stand_in.pool)
    sample(stand_in, *random_batch(6, 20), SETTINGS["sequential"], range(6))
    assert len(stand_in.pool) <= before


def test_what_an_earlier_batch_left_in_the_cache_is_not_seen(uncompiled):
    model = tiny_gpt2(20)
    stand_in = CompiledModel(model)
    assert_same(model, stand_in, 6, 20, SETTINGS["assd self"])
    with torch.inference_mode():  # the tensors were made in it
        for tensor in stand_in.pool.values():
            tensor.fill_(10000 if tensor.dtype != torch.bool else True)
    assert_same(model, stand_in, 6, 20, SETTINGS["assd self"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.skipif(" " in torch.__path__[0], reason="torch cannot call the compiler from a path with a space")
def test_compiled_steps_give_the_same_tokens():
    model = tiny_gpt2(20)
    stand_in, before = CompiledModel(model), counters["stats"]["unique_graphs"]
    for name in ("sequential", "assd self", "fused"):
        for batch, length in ((1, 30), (3, 40), (4, 90)):
            assert_same(model, stand_in, batch, length, SETTINGS[name])
    for text in range(200):  # of all lengths, with a few targets each
        tokens, _, target = random_batch(1, 20 + text)
        target &= torch.arange(20 + text) % 10 == 3
        target[:, 5] = True
        for name in ("sequential", "assd self", "fused"):
            sample(stand_in, tokens, ~target, target, SETTINGS[name], [text])
    assert stand_in.compiles  # it did not fall back
    assert counters["stats"]["unique_graphs"] - before <= 12  # two a step, for one row and for more, are expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.skipif(" " in torch.__path__[0], reason="torch cannot call the compiler from a path with a space")
def test_all_parts_compile_as_one_graph():
    """A recurrent head, gaps of unknown length, another verification rule; `fullgraph` refuses parts."""
    model = tiny_llama(20, draft_head=8, draft_recurrent=True, draft_vocabulary=9, gap_end_token_id=18)
    stand_in = CompiledModel(model)
    tokens, given, target = random_batch(4, 30)
    is_end = given & target.roll(1, 1)
    inputs = (tokens.masked_fill(is_end, 18), given, target)
    config = SamplerConfig(sampler="fused", k=3, coupling="gumbel")
    expected, found = (sample(some, *inputs, config, range(4)) for some in (model, stand_in))
    assert torch.equal(found.tokens, expected.tokens)
    assert stand_in.compiles


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "rows", "settings"),
    [
        (tiny_xlnet, 1, {"sampler": "fused", "coupling": "block", "k": 2}),
        (tiny_llama, 1, {"sampler": "fused", "k": 2, "alternatives": 2}),
        (tiny_gpt2, 3, {"draft": "ngram", "k": 2}),
    ],
)
def test_transformed_steps_are_one_graph(backbone, rows, settings, monkeypatch):
    """All transforms and allowed tokens: what the compiler traces gives the same tokens. No kernels are made."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, options, **rest: compile(step, backend="aot_eager", **rest))
    model = backbone(20)
    stand_in, inputs = CompiledModel(model), random_batch(rows, 12)
    config = SamplerConfig(
        temperature=0.8,
        top_k=12,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.5,
        bad_words_ids=[[2], [3, 4]],
        **settings,
    )
    allowed = torch.rand(rows, 12, 20, generator=torch.Generator().manual_seed(0)) < 0.8
    expected, found = (sample(some, *inputs, config, range(rows), allowed=allowed) for some in (model, stand_in))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.nfe, expected.nfe)
    assert stand_in.compiles


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
