"""The `xlnet` backbone against `transformers.XLNetLMHeadModel` in position order with permutation masks."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, XLNetConfig, XLNetForSequenceClassification, XLNetLMHeadModel

from asarm.models import load
from asarm.models.load import AsArm, load_tokenizer
from asarm.models.xlnet import AnyOrderXLNet, AnyOrderXLNetConfig
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.sampling.counter_rng import REPLACEMENT, VERDICT, CounterRNG, GumbelSampler, InverseCDFSampler, inverse_cdf
from asarm.utils.errors import InputError
from support.reference import RandomDraws, reference_assd, reference_logits, reference_sequential

TINY = {"vocab_size": 40, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
SHAPES = {
    "tiny": TINY,
    # heads of 7, nothing divisible by 4, another activation, offsets cut at 5
    "odd": {"vocab_size": 101, "d_model": 42, "n_layer": 3, "n_head": 6, "d_inner": 77}
    | {"ff_activation": "gelu_new", "clamp_len": 5, "layer_norm_eps": 1e-5},
    # the vocabulary is cut from 32000, as more logits test nothing more
    "base": {"vocab_size": 2000, "d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072},
}
MASK = 6
ANY_SHAPE = pytest.mark.parametrize(
    "shape", [pytest.param(name, marks=pytest.mark.slow if name == "base" else ()) for name in SHAPES]
)


def random_reference(seed: int = 0, **settings) -> XLNetLMHeadModel:
    """An `XLNetLMHeadModel` with random tensors on the scale of a trained one.

    Attention and logits are neither flat nor one-sided, layer norms and biases differ from 1 and 0.
    """
    model = XLNetLMHeadModel(XLNetConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("layer_norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("word_embedding.weight"):
                parameter.copy_(noise * 3 / parameter.shape[1] ** 0.5)
            elif ".rel_attn." in name and parameter.shape[0] == settings["d_model"]:
                parameter.copy_(noise * 1.2 / parameter.shape[0] ** 0.5)
            elif ".ff." in name and parameter.ndim == 2:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model


def in_rank_order(reference: XLNetLMHeadModel) -> AnyOrderXLNet:
    """Our model with the same weights."""
    settings = {k: v for k, v in reference.config.to_dict().items() if k not in ("architectures", "model_type")}
    model = AnyOrderXLNet(AnyOrderXLNetConfig(**settings, mask_token_id=MASK))
    model.load_state_dict(reference.state_dict())
    return model.eval()


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference of two logits [..., V], the mask token's left out; ours must be -inf there."""
    assert (ours[..., MASK] == -torch.inf).all()
    others = torch.arange(ours.shape[-1]) != MASK
    assert ours[..., others].isfinite().all()
    return float((ours - theirs)[..., others].abs().max())


def random_orders(count: int, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Orders [B, N] (rank -> position) with prompts of 1, 2, ... N-1 tokens in turn, and the prompts' lengths [B].

    Every second one is of the lattice (prompt and targets ascending); the others are any permutations.
    """
    order = torch.rand(count, length, generator=generator).argsort(1)
    prompt_length = torch.arange(count) % (length - 1) + 1
    for row in range(0, count, 2):
        m = int(prompt_length[row])
        order[row] = torch.cat((order[row, :m].sort().values, order[row, m:].sort().values))
    return order, prompt_length


def joint(model: AnyOrderXLNet, ranked: torch.Tensor, order: torch.Tensor, prompt_length: torch.Tensor) -> torch.Tensor:
    """All conditionals [B, N, V] of the joint at ranks 0..N-1, those of prompt tokens given the rest of the prompt."""
    ranks = torch.arange(ranked.shape[1]).expand(len(ranked), -1)
    content = torch.maximum(ranks + 1, prompt_length[:, None])
    return model(ranked, order, content, order, torch.maximum(ranks, prompt_length[:, None]))


def reference_joint(reference, ranked, order, prompt_length) -> torch.Tensor:
    """The same [B, N, V] from `transformers`."""
    rank = order.argsort(1)
    known = torch.full_like(prompt_length, ranked.shape[1])
    return reference_logits(reference, ranked.gather(1, rank), rank, prompt_length, known, order)


@pytest.fixture(scope="module")
def tiny():
    reference = random_reference(**TINY)
    return reference, in_rank_order(reference)


@torch.inference_mode()
@ANY_SHAPE
def test_logits_of_100_orders_are_those_of_transformers(shape):
    reference = random_reference(**SHAPES[shape])
    model = in_rank_order(reference)
    generator = torch.Generator().manual_seed(1)
    order, prompt_length = random_orders(100, 16, generator)
    ranked = torch.randint(0, model.config.vocab_size, order.shape, generator=generator)
    for rows in torch.arange(100).split(20):
        theirs = reference_joint(reference, ranked[rows], order[rows], prompt_length[rows])
        ours = joint(model, ranked[rows], order[rows], prompt_length[rows])
        assert theirs.std() > 1
        # A prompt token sees itself in `joint`, so its query would too: only targets are predictions.
        target = torch.arange(16) >= prompt_length[rows, None]
        assert gap(ours[target], theirs[target]) < 1e-4


@pytest.mark.slow
@torch.inference_mode()
def test_logits_of_a_long_sequence_are_those_of_transformers():
    reference = random_reference(**SHAPES["base"])
    model = in_rank_order(reference)
    generator = torch.Generator().manual_seed(2)
    order = torch.rand(1, 512, generator=generator).argsort(1)
    ranked = torch.randint(0, model.config.vocab_size, order.shape, generator=generator)
    prompt_length = torch.tensor([26])
    ours, theirs = (f(m, ranked, order, prompt_length) for f, m in ((joint, model), (reference_joint, reference)))
    assert gap(ours[:, 26:], theirs[:, 26:]) < 1e-4


class History:
    """Three rows decoded by hand through the cache; every logit is compared with the recomputed one."""

    def __init__(self, reference, model, seed: int, length: int = 10):
        self.reference, self.model = reference, model
        self.generator = torch.Generator().manual_seed(seed)
        self.order, _ = random_orders(3, length, self.generator)
        self.prompt_length = torch.randint(1, length, (3,), generator=self.generator)
        self.ranked = torch.randint(0, model.config.vocab_size, self.order.shape, generator=self.generator)
        self.decoded = self.prompt_length.clone()
        self.cache = model.new_cache(3, length, length)

    def random(self, low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(low, high, size, generator=self.generator)

    def evaluate(self, upto: torch.Tensor, known: torch.Tensor, ranks: torch.Tensor, contexts: torch.Tensor) -> None:
        """Content up to `upto` [B] goes to the cache; queries at ranks [B, Q] see contexts [B, Q] ranks."""
        length = self.order.shape[1]
        start = self.cache.lengths
        index = (start[:, None] + torch.arange(int((upto - start).max()))).clamp(max=length - 1)
        content = torch.maximum(index + 1, self.prompt_length[:, None]).minimum(upto[:, None])
        positions = self.order.gather(1, ranks % length)  # past the end any position will do
        ours = self.model(
            self.ranked.gather(1, index),
            self.order.gather(1, index),
            content,
            positions,
            contexts.minimum(upto[:, None]),
            self.cache,
        )
        self.cache.set_lengths(upto)
        rank = self.order.argsort(1)
        theirs = reference_logits(
            self.reference, self.ranked.gather(1, rank), rank, self.prompt_length, known, positions
        )
        real = ranks < length
        assert gap(ours[real], theirs[real]) < 1e-4

    def iterate(self, k: int) -> None:
        """Draft k, verify them, keep some, put another token after those; finished rows leave the batch."""
        length = self.order.shape[1]
        ranks = self.decoded[:, None] + torch.arange(k)
        self.evaluate(self.decoded, self.decoded, ranks, self.decoded[:, None].expand_as(ranks))
        self.ranked.scatter_(1, ranks.clamp(max=length - 1), self.random(0, self.model.config.vocab_size, ranks.shape))
        upto = (self.decoded + k).clamp(max=length)
        self.evaluate(upto, torch.full_like(upto, length), ranks, ranks)
        kept = self.random(0, k + 1, upto.shape)
        last = (self.decoded + kept).clamp(max=length - 1)
        self.ranked.scatter_(1, last[:, None], self.random(0, self.model.config.vocab_size, (len(last), 1)))
        self.cache.set_lengths(torch.minimum(last, upto))
        self.decoded = last + 1
        rows = (self.decoded < length).nonzero()[:, 0]
        for name in ("order", "prompt_length", "ranked", "decoded"):
            setattr(self, name, getattr(self, name)[rows])
        self.cache.keep_rows(rows)


@torch.inference_mode()
def test_50_histories_through_the_cache_agree_with_recomputing(tiny):
    iterations = 0
    for seed in range(50):
        history = History(*tiny, seed)
        while len(history.decoded):
            history.iterate(k=int(history.random(1, 5, ())))
            iterations += 1
    assert iterations > 100


@torch.inference_mode()
def test_positions_past_the_cache_capacity(tiny):
    """A sequence most of which is left out: four ranks, but positions up to 90, met one by one."""
    _, model = tiny
    tokens, order = torch.tensor([[8, 9, 10, 11]]), torch.tensor([[2, 5, 30, 90]])
    expected = joint(model, tokens, order, torch.tensor([1]))
    cache = model.new_cache(1, 4, 91)
    for rank in range(3):
        cache.set_lengths(torch.tensor([rank]))
        now, later = slice(rank, rank + 1), slice(rank + 1, rank + 2)
        seen = torch.tensor([[rank + 1]])
        logits = model(tokens[:, now], order[:, now], seen, order[:, later], seen, cache)
        assert gap(logits, expected[:, later]) < 1e-4


class TiedDraws(RandomDraws):
    """The draws of the samplers themselves for a seed, so that both sides must choose the same tokens."""

    def __init__(self, seed: int, tokens_by: type):
        """tokens_by: GumbelSampler or InverseCDFSampler, how tokens are drawn that do not replace a draft."""
        self.rng, self.tokens_by = CounterRNG(torch.tensor([seed])), tokens_by

    def token(self, probs, position):
        choice = self.tokens_by(self.rng, torch.tensor([[position]]), len(probs))
        return int(choice.draw(choice.weights(probs.log()[None, None])))

    def verdict(self, position):
        return float(self.rng.uniform(torch.tensor([[position]]))[VERDICT])

    def replacement(self, probs, position):
        return int(inverse_cdf(probs, self.rng.uniform(torch.tensor([[position]]))[REPLACEMENT, 0, 0]))


def test_samplers_give_the_tokens_of_the_reference_samplers(tiny):
    """With the same random numbers: the same tokens for the same number of function evaluations."""
    reference, model = tiny
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(7, TINY["vocab_size"], (8, 14), generator=generator)
    given = torch.rand(8, 14, generator=generator) < 0.3
    given[:, 5] = True
    seeds = list(range(8))
    sequential = sample(model, tokens, given, ~given, SamplerConfig(sampler="sequential", temperature=0.9), seeds)
    assd = sample(model, tokens, given, ~given, SamplerConfig(k=4, temperature=0.9), seeds)
    accepted = 0
    for row in seeds:
        arguments = (reference, tokens[row], given[row], MASK)
        plain = reference_sequential(*arguments, TiedDraws(row, GumbelSampler), temperature=0.9)
        assert torch.equal(plain.tokens, sequential.tokens[row])
        assert plain.nfe == sequential.nfe[row] == (~given[row]).sum()
        speculative = reference_assd(*arguments, TiedDraws(row, InverseCDFSampler), k=4, temperature=0.9)
        assert torch.equal(speculative.tokens, assd.tokens[row])
        assert speculative.nfe == assd.nfe[row]
        accepted += speculative.accepted
    assert accepted > 8  # one an iteration is sure; the others make this a test of rejection and acceptance


def test_a_query_sees_its_context_and_nothing_else(tiny):
    _, model = tiny
    order, prompt_length = random_orders(6, 12, torch.Generator().manual_seed(4))
    ranked = torch.randint(0, TINY["vocab_size"], order.shape, generator=torch.Generator().manual_seed(5))
    before = joint(model, ranked, order, prompt_length)
    for changed in range(12):
        other = ranked.clone()
        other[:, changed] = (other[:, changed] + 1) % TINY["vocab_size"]
        after = joint(model, other, order, prompt_length)
        context = torch.maximum(torch.arange(12), prompt_length[:, None])  # [B, N]
        assert torch.equal(before[context <= changed], after[context <= changed])
        if changed < 11:  # the last rank is seen by no query
            assert (before - after)[context > changed][:, :MASK].abs().max() > 1e-3


def test_a_query_with_nothing_to_see_is_finite_and_depends_on_nothing(tiny):
    _, model = tiny
    none = torch.zeros(2, 0, dtype=torch.long)
    queries = torch.tensor([[3, 0], [1, 9]])
    nothing = torch.zeros_like(queries)
    alone = model(none, none, none, queries, nothing)
    assert alone[..., :MASK].isfinite().all()
    tokens = torch.tensor([[8, 9, 10], [11, 12, 13]])
    positions, content = torch.tensor([[0, 1, 2], [4, 5, 6]]), torch.tensor([[1, 2, 3], [1, 2, 3]])
    assert torch.allclose(model(tokens, positions, content, queries, nothing), alone)
    cache = model.new_cache(2, 3, 10)
    assert torch.allclose(model(none, none, none, queries, nothing, cache), alone)


def test_gradients_are_those_of_transformers():
    reference = random_reference(**TINY, dropout=0.0).train()
    model = in_rank_order(reference).train()
    order, prompt_length = random_orders(4, 10, torch.Generator().manual_seed(6))
    ranked = torch.randint(7, TINY["vocab_size"], order.shape, generator=torch.Generator().manual_seed(7))
    target = torch.arange(10) >= prompt_length[:, None]
    theirs = reference_joint(reference, ranked, order, prompt_length)
    theirs = theirs.masked_fill(torch.arange(TINY["vocab_size"]) == MASK, -torch.inf)
    for logits in (theirs, joint(model, ranked, order, prompt_length)):
        torch.nn.functional.cross_entropy(logits[target], ranked[target]).backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert expected.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_dropout_is_on_in_training_only(tiny):
    _, model = tiny
    order, prompt_length = random_orders(2, 8, torch.Generator().manual_seed(8))
    ranked = torch.full_like(order, 9)
    still = joint(model, ranked, order, prompt_length)
    model.train()
    shaken = joint(model, ranked, order, prompt_length)
    model.eval()
    assert (still - shaken)[..., :MASK].abs().max() > 1e-2
    assert torch.equal(still, joint(model, ranked, order, prompt_length))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny, tiny_folder):
    """A checkpoint written by `transformers`, sharded, with a tokenizer beside it. Read only."""
    path = tmp_path_factory.mktemp("xlnet")
    random_reference(**TINY | {"vocab_size": 300}).save_pretrained(path, max_shard_size="30KB")
    load_tokenizer(tiny_folder).save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    """The same checkpoint in one file, to be damaged."""
    path = tmp_path / "copy"
    XLNetLMHeadModel.from_pretrained(folder).save_pretrained(path)
    load_tokenizer(folder).save_pretrained(path)
    return path


def change_weights(path, change) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def test_a_checkpoint_goes_there_and_back(folder, tmp_path):
    assert len(list(folder.glob("*.safetensors"))) > 2
    reference, model = XLNetLMHeadModel.from_pretrained(folder).eval(), AsArm.from_pretrained(folder)
    assert model.config.mask_token_id == load_tokenizer(folder).mask_token_id
    assert not model.training
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("xlnet", ["XLNetLMHeadModel"])
    returned, report = XLNetLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    again = AsArm.from_pretrained(tmp_path)  # without a tokenizer: the config now knows the mask token
    assert again.config.mask_token_id == model.config.mask_token_id
    order, prompt_length = random_orders(5, 6, torch.Generator().manual_seed(9))
    ranked = torch.randint(0, 300, order.shape, generator=torch.Generator().manual_seed(10))
    target = torch.arange(6) >= prompt_length[:, None]
    kept = torch.arange(300) != model.config.mask_token_id
    expected = reference_joint(reference, ranked, order, prompt_length)
    assert torch.equal(reference_joint(returned.eval(), ranked, order, prompt_length), expected)
    for ours in (joint(model, ranked, order, prompt_length), joint(again, ranked, order, prompt_length)):
        assert (ours - expected)[target][:, kept].abs().max() < 1e-4


def test_weights_need_not_be_tied(tmp_path):
    reference = random_reference(**TINY, tie_word_embeddings=False)
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"mask_token_id": MASK}))
    assert torch.equal(AsArm.from_pretrained(tmp_path).lm_loss.weight, reference.lm_loss.weight)


def test_a_missing_tensor_is_an_error(copy):
    change_weights(copy, lambda weights: weights.pop("transformer.layer.1.rel_attn.r_w_bias"))
    with pytest.raises(InputError, match=r"missing_keys.*layer\.1\.rel_attn\.r_w_bias"):
        AsArm.from_pretrained(copy)


def test_an_unexpected_tensor_is_an_error(copy):
    change_weights(copy, lambda weights: weights.update(surplus=torch.zeros(3)))
    with pytest.raises(InputError, match=r"unexpected_keys.*surplus"):
        AsArm.from_pretrained(copy)


def test_a_tensor_of_another_shape_is_an_error(copy):
    change_weights(copy, lambda weights: weights.update({"transformer.mask_emb": torch.zeros(1, 1, 7)}))
    with pytest.raises(InputError, match=r"mismatched_keys.*mask_emb \(1, 1, 7\), not \(1, 1, 32\)"):
        AsArm.from_pretrained(copy)


def test_another_head_is_refused(tmp_path):
    XLNetForSequenceClassification(XLNetConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"missing_keys.*lm_loss.*unexpected_keys.*logits_proj"):
        AsArm.from_pretrained(tmp_path)


def test_another_architecture_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a bert model"):
        AsArm.from_pretrained(tmp_path)


def test_a_truncated_file_is_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        AsArm.from_pretrained(copy)


def test_a_missing_shard_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    sorted((tmp_path / "copy").glob("*.safetensors"))[1].unlink()
    with pytest.raises(InputError, match=r"names model-00002-of-.*, not there"):
        AsArm.from_pretrained(tmp_path / "copy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attn_type": "uni"}, "attn_type='uni'"),
        ({"bi_data": True}, "bi_data=True"),
        ({"d_model": 33, "n_head": 3, "d_head": 11}, "d_model=33 is odd"),
        ({"d_head": 5}, "d_head"),
        ({"ff_activation": "gelu_newer"}, "unknown ff_activation 'gelu_newer': choose from .*gelu_new"),
        ({"n_layer": 0}, "n_layer must be at least 1, not 0"),
        ({"n_head": 0}, "the config of .* is not valid: ZeroDivisionError"),
        ({"d_inner": -1}, "d_inner must be at least 1, not -1"),
        ({"d_model": "32"}, "'d_model' expected int, got str"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, not 0"),
        ({"n_positions": 0}, "n_positions must be at least 1, not 0"),
        ({"n_positions": "long"}, "'n_positions' .*got str"),
        ({"clamp_len": 2.5}, "'clamp_len' expected int, got float"),
        ({"dropout": 1}, r"dropout=1 must lie in \[0, 1\)"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps must be at least 0"),
        ({"initializer_range": -1.0}, "initializer_range must be at least 0"),
        ({"mask_token_id": 40}, "mask_token_id=40 must lie in 0..vocab_size - 1"),
        ({"n_tokens": 41}, "n_tokens=41 must lie in 1..vocab_size - 1"),
        ({"draft_head": -8}, "draft_head must be at least 0"),
        ({"white_space": "kept"}, "white_space='kept' must be plain or tokens"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized weights cannot be read"),
        ({"dtype": "float17"}, "no attribute 'float17'"),
        ({"model_type": ["xlnet"]}, "the config of .* is not valid: TypeError"),
    ],
)
def test_configs_that_are_refused(tmp_path, settings, message):
    config = json.loads(XLNetConfig(**TINY).to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(InputError, match=message) as error:
        AsArm.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@torch.inference_mode()
def test_settings_that_change_nothing_are_read(copy):
    """Those of memory that is not used, of heads that are not there, and what old conversions wrote."""
    expected = AsArm.from_pretrained(copy)
    others = {
        "same_length": True,
        "mem_len": 9,
        "reuse_len": 3,
        "untie_r": False,
        "summary_type": "mean",
        "clamp_len": 0,
    }
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | others))
    order, prompt_length = random_orders(3, 8, torch.Generator().manual_seed(11))
    ranked = torch.randint(0, 300, order.shape, generator=torch.Generator().manual_seed(12))
    reference = XLNetLMHeadModel.from_pretrained(copy).eval()
    target = torch.arange(8) >= prompt_length[:, None]
    kept = torch.arange(300) != expected.config.mask_token_id
    theirs = reference_joint(reference, ranked, order, prompt_length)
    for model in (expected, AsArm.from_pretrained(copy)):
        assert (joint(model, ranked, order, prompt_length) - theirs)[target][:, kept].abs().max() < 1e-4


def test_the_tokenizer_of_xlnet_stands_in_for_a_missing_one(folder, tmp_path, monkeypatch):
    XLNetLMHeadModel.from_pretrained(folder).save_pretrained(tmp_path)
    monkeypatch.setattr(load, "XLNET_TOKENIZER", str(folder))
    assert len(load_tokenizer(tmp_path)) == len(load_tokenizer(folder))
    assert AsArm.from_pretrained(tmp_path).config.mask_token_id == load_tokenizer(folder).mask_token_id
    monkeypatch.setattr(load, "XLNET_TOKENIZER", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="without a tokenizer, and XLNet's is needed: no model folder"):
        AsArm.from_pretrained(tmp_path)


def test_rows_without_a_token_are_told_from_tokens(tiny_folder, tmp_path):
    """Loaded with its tokenizer, and saved and loaded without one."""
    tokenizer = load_tokenizer(tiny_folder)
    random_reference(**TINY | {"vocab_size": len(tokenizer) + 40}).save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    model, _ = load.load(tmp_path / "padded")
    assert (model.config.vocab_size, model.config.n_tokens) == (len(tokenizer) + 40, len(tokenizer))
    model.save_pretrained(tmp_path / "saved")
    assert AsArm.from_pretrained(tmp_path / "saved").config.n_tokens == len(tokenizer)
    assert AsArm.from_pretrained(tmp_path / "padded").config.n_tokens == len(tokenizer)
    assert load.load(tiny_folder)[0].config.n_tokens is None


@pytest.mark.parametrize("vocab_size", [2, 299])
def test_a_tokenizer_larger_than_the_model_is_refused(tiny_folder, tmp_path, vocab_size):
    random_reference(**TINY | {"vocab_size": vocab_size}).save_pretrained(tmp_path)
    load_tokenizer(tiny_folder).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"mask token is \d+ of 300, theirs \d+ of {vocab_size}"):
        load.load(tmp_path)
