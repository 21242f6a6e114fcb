"""Starting from GPT-2: its weights compute what they do in `transformers`, and what our backbone cannot is refused."""

import json
import os
import subprocess
import sys
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertConfig, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from asarm import SamplerConfig, load, log_prob, sample
from asarm.models.conversion.from_gpt2 import start_from
from asarm.objective.loss import LossConfig, training_loss
from asarm.utils.errors import InputError
from support.hub import Hub

TINY = {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
ODD = {"vocab_size": 300, "n_positions": 23, "n_embd": 30, "n_layer": 3, "n_head": 3, "layer_norm_epsilon": 1e-2}
BASE = {"vocab_size": 300, "n_positions": 128, "n_embd": 768, "n_layer": 12, "n_head": 12}


def random_gpt2(seed: int = 0, **settings) -> GPT2LMHeadModel:
    """A GPT-2 whose every parameter is drawn, on scales that keep activations near 1 and make attention choosy."""
    model = GPT2LMHeadModel(GPT2Config(**TINY | settings, bos_token_id=0, eos_token_id=0)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if ".ln_" in name:
                parameter.copy_(0.3 * noise + name.endswith("weight"))
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * noise)
            else:  # Conv1D's weights are [in, out], the embeddings' [number, width]
                fan_in = parameter.shape["wte" in name or "wpe" in name]
                parameter.copy_(noise * (2.0 if "c_attn" in name else 1.0) / fan_in**0.5)
    return model


def save_tokenizer(folder, text: str, vocab_size: int) -> None:
    """A byte-level BPE as GPT-2's repositories have it: vocab.json and merges.txt, eos the only special token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if vocab_size > 256 else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([text], trainer)
    assert bpe.get_vocab_size() == vocab_size
    folder.mkdir(exist_ok=True)
    bpe.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024}))


@pytest.fixture
def folder(tmp_path, sample_text):
    """A GPT-2 with its tokenizer of 300 tokens, in a folder of its own."""
    random_gpt2().save_pretrained(tmp_path / "gpt2")
    save_tokenizer(tmp_path / "gpt2", sample_text, 300)
    return tmp_path / "gpt2"


def change_config(folder, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def content_logits(model, learned: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, N, V] of the content stream, left to right, with learned positions [N, E]. Spoils the model.

    A query that starts from a token's embedding and sees that token is its row of the content stream; where all
    positions are 0, nothing is turned.
    """
    model.query_vector = torch.nn.Parameter(model.wte(tokens) + learned)  # [B, N, E]
    model.wte.register_forward_hook(lambda module, inputs, embedded: embedded + learned)
    nowhere, context = torch.zeros_like(tokens), torch.arange(1, tokens.shape[1] + 1).expand_as(tokens)
    return model(tokens, nowhere, context, nowhere, context)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        ODD | {"activation_function": "gelu_pytorch_tanh", "n_inner": 120},
        ODD | {"n_head": 1, "activation_function": "gelu_fast"},
        {"reorder_and_upcast_attn": True, "n_head": 4, "n_layer": 1},
        pytest.param(BASE, marks=pytest.mark.slow),
    ],
    ids=["tiny", "odd", "one-head", "upcast", "base"],
)
@torch.inference_mode()
def test_left_to_right_the_content_stream_is_gpt2(tmp_path, sample_text, settings):
    reference = random_gpt2(**settings)
    reference.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, sample_text, 300)
    model, codec = start_from(tmp_path)
    length = reference.config.n_positions
    assert (model.config.n_positions, model.config.vocab_size, codec.mask_token_id) == (length, 301, 300)
    tokens = torch.randint(0, 300, (3, length), generator=torch.Generator().manual_seed(1))
    expected = reference(input_ids=tokens).logits
    ours = content_logits(model, reference.transformer.wpe.weight, tokens)
    torch.testing.assert_close(ours[..., :300], expected, atol=1e-4, rtol=0)
    assert (ours[..., 300] == -torch.inf).all()
    # The comparison would be worth little if attention did nothing, or if only the nearest token counted.
    tokens[:, 0] = (tokens[:, 0] + 1) % 300
    assert (reference(input_ids=tokens).logits - expected)[:, -1].abs().max() > 0.01


def without_prefix(weights: dict) -> None:
    for name in list(weights):
        weights[name.removeprefix("transformer.")] = weights.pop(name)


def with_causal_masks(weights: dict) -> None:
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)


def with_its_output_layer(weights: dict) -> None:
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()


@pytest.mark.parametrize("changes", [
    [without_prefix], [with_causal_masks], [with_causal_masks, without_prefix], [with_its_output_layer],
])  # fmt: skip
def test_the_forms_of_checkpoints(folder, changes):
    expected = start_from(folder)[0].state_dict()
    for change in changes:
        change_weights(folder, change)
    found = start_from(folder)[0].state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_sharded_checkpoint_in_half_precision(folder):
    reference = random_gpt2().half()
    (folder / "model.safetensors").unlink()
    reference.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    model, _ = start_from(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.wte.weight[:300], reference.transformer.wte.weight.float())
    # Where a token is predicted, GPT-2's first block finds the average position, and no token.
    torch.testing.assert_close(model.query_vector, reference.transformer.wpe.weight.float().mean(0))
    assert torch.equal(model.blocks[1].proj.weight, reference.transformer.h[1].mlp.c_proj.weight.float().t())


@torch.inference_mode()
def test_saved_it_loads_as_any_other_model(folder, tmp_path, sample_text):
    model, codec = start_from(folder)
    model.save_pretrained(tmp_path / "asarm")
    codec.save_pretrained(tmp_path / "asarm")
    plain = AutoTokenizer.from_pretrained(folder)
    for again, its_codec in (load(tmp_path / "asarm"), start_from(tmp_path / "asarm")):
        assert not again.training
        assert again.config.to_diff_dict() | {"architectures": 0} == model.config.to_diff_dict() | {"architectures": 0}
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
        assert its_codec.encode(sample_text) == codec.encode(sample_text) == plain.encode(sample_text)
        assert its_codec.decode(its_codec.encode(sample_text)) == sample_text
        assert its_codec.encode("a<mask>b")[1] == its_codec.mask_token_id == 300
        assert its_codec.eos_token_id == its_codec.tokenizer.pad_token_id == again.config.eos_token_id == 0


def test_rows_without_a_token_are_left_out(tmp_path, sample_text):
    """Embeddings are often filled up to a multiple of 64."""
    reference = random_gpt2(vocab_size=320)
    reference.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, sample_text, 300)
    model, codec = start_from(tmp_path)
    assert len(codec) == len(model.wte.weight) == model.config.vocab_size == 301
    assert torch.equal(model.wte.weight[:300], reference.transformer.wte.weight[:300])


def test_a_mask_token_that_is_there_stays(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"mask_token": "[gap]", "pad_token": "[pad]"})
    tokenizer.save_pretrained(folder)
    reference = random_gpt2(vocab_size=302)
    reference.save_pretrained(folder)
    model, codec = start_from(folder)
    assert (codec.mask_token, codec.mask_token_id, len(codec)) == ("[gap]", model.config.mask_token_id, 302)
    assert codec.tokenizer.pad_token == "[pad]"
    assert torch.equal(model.wte.weight, reference.transformer.wte.weight)


@pytest.fixture
def enumerable(tmp_path):
    """A start from a GPT-2 of 7 tokens; the eighth is the mask."""
    random_gpt2(vocab_size=7).save_pretrained(tmp_path / "seven")
    save_tokenizer(tmp_path / "seven", "abcde abcde", 7)
    return start_from(tmp_path / "seven")[0]


@pytest.mark.parametrize("targets", [[0, 1, 2], [2, 3, 4], [0, 2, 4], [1, 3], [0, 1, 2, 3]])
def test_every_order_has_a_normalised_distribution(enumerable, targets):
    """Summed over all sequences without the mask token, the probabilities of the targets given the others are 1."""
    given = torch.ones(5, dtype=torch.bool)
    given[targets] = False
    sequences = torch.tensor([[3, 1, 4, 1, 5]]).repeat(7 ** len(targets), 1)
    sequences[:, targets] = torch.tensor(list(product(range(7), repeat=len(targets))))
    probs = log_prob(enumerable, sequences, given.expand_as(sequences)).sum(1).double().exp()
    assert abs(float(probs.sum()) - 1) < 1e-5
    assert probs.max() > 2 * probs.mean()


def test_speculative_decoding_gives_the_sequential_tokens(enumerable):
    tokens = torch.randint(0, 7, (6, 20), generator=torch.Generator().manual_seed(2))
    target = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    tokens[target] = 7
    sequential, speculative = (
        sample(enumerable, tokens, ~target, target, SamplerConfig(sampler=name, coupling="gumbel", k=4), seeds=range(6))
        for name in ("sequential", "assd")
    )
    assert torch.equal(sequential.tokens, speculative.tokens)
    assert sequential.tokens.max() < 7


def test_training_lowers_the_loss(folder, sample_text):
    model, codec = start_from(folder)
    ids = codec.encode(sample_text)
    batch = torch.tensor([ids[start : start + 32] for start in range(0, 128, 32)])

    def loss() -> torch.Tensor:
        return training_loss(model, batch, 0.5, LossConfig(), torch.Generator().manual_seed(4)).joint

    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        losses.append(loss())
        losses[-1].backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]
    assert losses[-1] < losses[0] - 0.3


def test_other_models_start_as_they_are(tiny_folder):
    model, _ = load(tiny_folder)
    started, codec = start_from(tiny_folder)
    assert all(torch.equal(value, started.state_dict()[name]) for name, value in model.state_dict().items())
    assert codec.mask_token_id == model.config.mask_token_id


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_inner": 64}, r"n_inner=64 .*None or 128 only"),
        ({"activation_function": "gelu"}, "activation_function='gelu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config=.*gptq"),
        ({"n_head": 3}, "n_head=3"),
        ({"n_head": 32}, "n_head=32 heads of even width"),
        ({"n_layer": 3}, r"missing_keys.*h\.2\."),
        ({"n_layer": 1}, r"unexpected_keys.*h\.1\.attn\.c_attn\.weight"),
        ({"n_positions": 32}, r"mismatched_keys.*wpe\.weight \(64, 32\), not \(32, 32\)"),
        ({"n_layer": 0}, "the config of .* is not valid: n_layer must be at least 1, not 0"),
        ({"n_head": 0}, "n_head must be at least 1, not 0"),
        ({"n_embd": "32"}, "'n_embd' expected int, got str"),
        ({"vocab_size": -1}, "vocab_size must be at least 1"),
        ({"tie_word_embeddings": False}, r"missing_keys.*lm_head"),
        ({"model_type": "opt"}, "is a opt model; known are .*gpt2"),
    ],
)
def test_configs_that_are_refused(folder, settings, message):
    change_config(folder, **settings)
    with pytest.raises(InputError, match=message) as error:
        start_from(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_of_its_own_is_refused(folder, tied):
    """Whatever the config says of it."""
    change_config(folder, tie_word_embeddings=tied)
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": weights["transformer.wte.weight"] + 1}))
    with pytest.raises(InputError, match="not tied"):
        start_from(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("transformer.h.1.attn.c_proj.bias"), r"missing_keys.*h\.1\.attn\.c_proj\.bias"),
        (lambda weights: weights.pop("transformer.wpe.weight"), r"missing_keys.*wpe"),
        (lambda weights: weights.pop("transformer.wte.weight"), r"missing_keys.*wte"),
        (lambda weights: weights.update(surplus=torch.zeros(3)), "unexpected_keys.*surplus"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, change, message):
    change_weights(folder, change)
    with pytest.raises(InputError, match=message):
        start_from(folder)


def test_other_heads_are_refused(folder):
    GPT2ForSequenceClassification(GPT2Config(**TINY, num_labels=2)).save_pretrained(folder)
    with pytest.raises(InputError, match=r"unexpected_keys.*score"):
        start_from(folder)


def test_a_tokenizer_must_be_there_and_fit(folder, sample_text):
    save_tokenizer(folder, sample_text, 301)
    with pytest.raises(InputError, match="has 301 tokens, but its weights only 300"):
        start_from(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(InputError, match="without a tokenizer"):
        start_from(folder)


def test_white_space_as_tokens_needs_such_tokens(folder):
    with pytest.raises(InputError, match="cannot write white space as tokens"):
        start_from(folder, white_space="tokens")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"cls_token": "<c>", "sep_token": "<s>", "unk_token": "<u>", "pad_token": "<p>"})
    tokenizer.save_pretrained(folder)
    random_gpt2(vocab_size=len(tokenizer)).save_pretrained(folder)
    model, codec = start_from(folder, white_space="tokens")
    assert model.config.white_space == "tokens"
    assert codec.decode(codec.encode("if a:\n\tb")) == "if a:\n\tb"


def test_other_architectures_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a bert model"):
        start_from(tmp_path)
    with pytest.raises(InputError, match="no model folder"):
        start_from(tmp_path / "nowhere")


def test_a_repository_of_the_hub(folder, tmp_path):
    """In a process of its own, because `huggingface_hub` reads its environment when it is imported."""
    script = (
        "from asarm.models.conversion.from_gpt2 import start_from; model, codec = start_from('user/gpt2', 'second'); "
        "print(float(model.wte.weight[:300].double().sum()), codec.mask_token_id)"
    )
    with Hub({"user/gpt2": {"main": tmp_path, "second": folder}}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    expected = load_file(folder / "model.safetensors")["transformer.wte.weight"].double().sum()
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(float(expected)), "300"]
