"""The `llama` backbone: left to right it is the causal model of `transformers`; saving, loading, what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, GemmaConfig, MistralConfig, MixtralConfig, PhiConfig, Qwen2MoeConfig

from asarm import SamplerConfig, load, log_prob, sample
from asarm.evals.language.likelihood import COLD
from asarm.models import load as loading
from asarm.models import ops
from asarm.models.conversion.from_gpt2 import start_from
from asarm.models.llama import AnyOrderLlama
from asarm.models.load import AsArm, pick_dtype
from asarm.models.rank_order import left_neighbours
from asarm.utils.errors import InputError
from support.llama import random_llama, save_llama
from support.models import tiny_llama

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
FAMILIES = {
    "llama": {},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 10, "rms_norm_eps": 1e-2},
    "llama3": {"rope_parameters": LLAMA3},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 3.0}},
    "yarn": {"rope_parameters": YARN},
    "old": {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},  # as configs used to be written
    "qwen2": {"family": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 8},
    "qwen2-yarn": {"family": "qwen2", "rope_parameters": YARN},
    "qwen3": {"family": "qwen3", "head_dim": 12},
    "qwen3-biases": {"family": "qwen3", "tie_word_embeddings": True, "attention_bias": True},
}
LENGTH = 40


@pytest.fixture(params=FAMILIES)
def pair(request, tmp_path, sample_text):
    """A causal model of `transformers` and, loaded from its folder, ours."""
    reference = save_llama(tmp_path / "theirs", sample_text, **FAMILIES[request.param])
    return reference, load(tmp_path / "theirs")[0]


def random_tokens(rows: int = 3) -> torch.Tensor:
    return torch.randint(0, 300, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fewest", [ops.FEWEST_WEIGHTS, 0])  # the weights are few: without and with packing
@torch.inference_mode()
def test_left_to_right_it_is_the_causal_model(pair, fewest, monkeypatch):
    """Log-probs of all that follows a prompt, at once and token by token through the cache."""
    monkeypatch.setattr(ops, "FEWEST_WEIGHTS", fewest)
    reference, model = pair
    tokens, prompt = random_tokens(), 7
    logits = reference(input_ids=tokens).logits
    expected = torch.log_softmax(logits, -1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    given = (torch.arange(LENGTH) < prompt).expand_as(tokens)
    assert (log_prob(model, tokens, given)[:, prompt:] - expected[:, prompt - 1 :]).abs().max() < 1e-4
    positions = torch.arange(LENGTH).expand_as(tokens)
    context = torch.full_like(positions, prompt)  # as a prompt that sees all of itself
    cache = model.new_cache(len(tokens), LENGTH, LENGTH)
    for start, stop in [(0, prompt), *((rank, rank + 1) for rank in range(prompt, LENGTH - 1))]:
        content, query = slice(start, stop), slice(stop, stop + 1)
        seen = positions[:, query]
        found = model(tokens[:, content], positions[:, content], context[:, content].clamp(min=stop), seen, seen, cache)
        cache.set_lengths(torch.full((len(tokens),), stop))
        torch.testing.assert_close(found[:, 0, :300], logits[:, stop - 1], atol=1e-4, rtol=0)
    assert (found[..., 300:] == -torch.inf).all()
    # The comparison would be worth little if attention did nothing, or if only the nearest token counted.
    tokens[:, 0] = (tokens[:, 0] + 1) % 300
    assert (reference(input_ids=tokens).logits - logits)[:, -1].abs().max() > 0.01


@pytest.mark.parametrize("settings", [
    {"sampler": "sequential"}, {"sampler": "assd", "k": 4}, {"sampler": "assd", "draft": "ngram", "k": 4},
    {"sampler": "fused", "k": 3},
])  # fmt: skip
@torch.inference_mode()
def test_greedy_decoding_gives_the_tokens_of_transformers(tmp_path, sample_text, settings):
    reference = save_llama(tmp_path, sample_text)
    model, codec = load(tmp_path)
    tokens = random_tokens()
    expected = reference.generate(
        tokens[:, :7], attention_mask=torch.ones(3, 7), do_sample=False, max_new_tokens=LENGTH - 7, eos_token_id=None
    )
    given = (torch.arange(LENGTH) < 7).expand_as(tokens)
    inputs = tokens.masked_fill(~given, codec.mask_token_id)
    found = sample(model, inputs, given, ~given, SamplerConfig(**settings, temperature=COLD), range(3)).tokens
    assert torch.equal(found, expected)


@torch.inference_mode()
def test_what_follows_a_gap_changes_what_is_put_in_it(tmp_path, sample_text):
    """And a token that is hidden changes nothing, though it is the left neighbour of a target."""
    save_llama(tmp_path, sample_text)
    model, _ = load(tmp_path)
    tokens = random_tokens(1)
    target = torch.zeros_like(tokens, dtype=torch.bool)
    target[:, [10, 11]] = True
    hidden = torch.zeros_like(target)
    hidden[:, 9] = True

    def changed(position: int) -> float:
        other = tokens.clone()
        other[:, position] = (other[:, position] + 1) % 300
        scores = [log_prob(model, some, ~target & ~hidden, target) for some in (tokens, other)]
        return float((scores[0] - scores[1]).abs().max())

    assert changed(9) == 0
    assert changed(8) > 1e-3
    assert changed(12) > 1e-3


def test_left_neighbours():
    tokens, positions = torch.tensor([[7, 8, 9, 5]]), torch.tensor([[2, 4, 3, 0]])
    queries = torch.tensor([[3, 5, 4, 1, 0, 9]])
    contexts = torch.tensor([[1, 2, 2, 4, 4, 4]])
    seen = torch.arange(4) < contexts[..., None]
    # Of position 4 the left neighbour, 3, has rank 2, which a context of 2 does not include.
    assert left_neighbours(tokens, positions, queries, seen).tolist() == [[7, 8, -1, 5, -1, -1]]


def test_saved_it_loads_as_any_other_model(pair, tmp_path):
    _, model = pair
    codec = load(tmp_path / "theirs")[1]
    model.save_pretrained(tmp_path / "ours")
    codec.save_pretrained(tmp_path / "ours")
    (again, its_codec), (started, _) = load(tmp_path / "ours"), start_from(tmp_path / "theirs")
    given = (torch.arange(LENGTH) % 3 == 0).expand(3, -1)
    for other in (again, started):
        assert other.config.to_diff_dict() | {"architectures": 0} == model.config.to_diff_dict() | {"architectures": 0}
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
        assert torch.equal(log_prob(other, random_tokens(), given), log_prob(model, random_tokens(), given))
    assert its_codec.mask_token_id == again.config.mask_token_id
    assert isinstance(AutoModel.from_pretrained(tmp_path / "ours"), AnyOrderLlama)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == model.config.tie_word_embeddings


def test_the_mask_token_is_the_only_new_one(tmp_path, sample_text):
    """Rows without a token are left out; without spare rows there is one more."""
    texts = ["Once upon a time", sample_text]
    for rows in (300, 320):
        reference = save_llama(tmp_path / str(rows), sample_text, vocab_size=rows)
        model, codec = load(tmp_path / str(rows))
        plain = AutoTokenizer.from_pretrained(tmp_path / str(rows))
        assert plain.mask_token is None
        assert [codec.encode(text) for text in texts] == [plain.encode(text) for text in texts]
        assert [codec.decode(codec.encode(text)) for text in texts] == texts
        assert len(codec) == model.config.vocab_size == len(model.model.embed_tokens.weight) == len(plain) + 1
        assert (codec.mask_token_id, codec.eos_token_id) == (len(plain), 0) == (model.config.mask_token_id, 0)
        theirs = reference.get_input_embeddings().weight[: len(plain)]
        assert torch.equal(model.model.embed_tokens.weight[: len(plain)], theirs)
        torch.testing.assert_close(model.model.no_left, model.model.embed_tokens.weight[: len(plain)].mean(0))


def test_sharded_half_precision_and_old_checkpoints(tmp_path, sample_text):
    reference = save_llama(tmp_path, sample_text)
    expected = load(tmp_path, dtype=torch.bfloat16)[0].state_dict()
    (tmp_path / "model.safetensors").unlink()
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"  # constants that older versions saved
    save_file(load_file(shards[0]) | {frequencies: torch.ones(4)}, shards[0], metadata={"format": "pt"})
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"][frequencies] = shards[0].name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model, _ = load(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_pickled_weights(tmp_path, sample_text):
    reference = save_llama(tmp_path, sample_text)
    expected = load(tmp_path)[0].state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    assert all(torch.equal(value, expected[name]) for name, value in load(tmp_path)[0].state_dict().items())


def test_frequencies_are_not_rounded_with_the_weights(tmp_path):
    model = tiny_llama(20, rope_parameters=LLAMA3, head_dim=16)
    positions = torch.arange(60)[None]
    expected = model.model.rotary(positions)
    model.save_pretrained(tmp_path)
    for other in (model.to(torch.bfloat16), AsArm.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        for found, wanted in zip(other.model.rotary(positions), expected, strict=True):
            assert torch.equal(found, wanted)


def test_bfloat16_is_the_default_where_it_is_fast(monkeypatch):
    cpu = torch.device("cpu")
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(loading, "multiplies_bfloat16", lambda fast=fast: fast)
        assert pick_dtype("auto", cpu, large=True) == dtype
        assert pick_dtype("auto", cpu) == pick_dtype("float32", cpu, large=True) == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'.*'silu' only"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config=.*gptq"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                              "long_factor": [1.0] * 4, "factor": 2.0}}, "rope_type='longrope'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
         "partial_rotary_factor=0.5"),
        ({"family": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
         "layer_types=.*sliding_attention"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(tmp_path, sample_text, settings, message):
    save_llama(tmp_path, sample_text, family=settings.get("family", "llama"))
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("layer_types", None)
    changed = config | {name: value for name, value in settings.items() if name != "family"}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [GemmaConfig(), MistralConfig(), MixtralConfig(), PhiConfig(), Qwen2MoeConfig()])
def test_other_architectures_are_refused_by_name(tmp_path, config):
    config.save_pretrained(tmp_path)
    for read in (load, start_from):
        with pytest.raises(
            InputError, match=f"is a {config.model_type} model; known are .*llama, qwen2, qwen3"
        ) as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


def test_a_tokenizer_must_be_there_and_fit(tmp_path, sample_text):
    save_llama(tmp_path, sample_text)
    random_llama(vocab_size=290).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has \d+ tokens, but its weights only 290"):
        load(tmp_path)
    for file in tmp_path.glob("token*"):
        file.unlink()
    with pytest.raises(InputError, match="comes without a tokenizer"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads=3 must divide .*=4"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, not 0"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"max_position_embeddings": 0}, "n_positions must be at least 1, not 0"),
        ({"qkv_bias": "yes"}, "'qkv_bias' expected bool, got str"),
    ],
)
def test_shapes_that_cannot_be(tmp_path, settings, message):
    config = json.loads(tiny_llama(20).config.to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(InputError, match=message) as error:
        AsArm.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
