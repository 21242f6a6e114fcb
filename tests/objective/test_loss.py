"""The training objective as it is computed (slices of the vocabulary, recomputation, shared masks) against a plain
implementation: losses and gradients."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import XLNetConfig, XLNetLMHeadModel

from asarm.models import backbone
from asarm.models.rank_order import rank_order
from asarm.objective.chunked_cross_entropy import cross_entropy
from asarm.objective.loss import LossConfig, draft_queries, query_nll, random_turns, training_loss
from asarm.objective.masking import random_targets
from support.models import tiny_gpt2, tiny_xlnet
from support.reference import permutation_mask

VOCABULARY, LENGTH = 23, 12
MASK = VOCABULARY - 1
DRAFT = LossConfig(draft_weight=0.7, draft_window=3, draft_share=0.6)
RANDOM = LossConfig("joint", "random", draft_weight=0.7, draft_window=3, draft_share=0.6)
PARALLEL = LossConfig("parallel")


def relative_gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return float(((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).detach())


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(ours: dict, theirs: dict, tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert theirs[name].abs().max() > 0, name
        assert relative_gap(ours[name], theirs[name]) < tolerance, name


def plain_nll(model, tokens, rank, context, query_positions, query_context) -> torch.Tensor:
    """NLL [B, Q] by a `gpt2` backbone's weights in position order, with N x N masks and every step written out.

    rank, context: [B, N], of each position, and how many ranks its content stream sees. The queries' likewise: [B, Q].
    """
    width, heads = model.config.n_embd, model.config.n_head

    def turned(x, positions):  # [B, R, H, D], the halves of D turned by position * base^(-2i / D)
        half = x.shape[-1] // 2
        exponents = torch.arange(half) * 2 / x.shape[-1]
        angles = (positions[..., None] * model.config.rotary_base**-exponents)[:, :, None]  # [B, R, 1, D / 2]
        turn = torch.polar(torch.ones_like(angles), angles) * torch.complex(x[..., :half], x[..., half:])
        return torch.cat((turn.real, turn.imag), dim=-1)

    def project(x, linear, part):  # one third of qkv, in heads
        weight, bias = linear.weight[part * width : (part + 1) * width], linear.bias[part * width : (part + 1) * width]
        return (x @ weight.t() + bias).unflatten(-1, (heads, -1))

    def layer(block, x, content, positions, own_positions, context):
        normed, known = block.ln_1(x), block.ln_1(content)
        queries = turned(project(normed, block.attn.qkv, 0), own_positions)
        keys = turned(project(known, block.attn.qkv, 1), positions)
        scores = torch.einsum("brhd,bthd->bhrt", queries, keys) / (width // heads) ** 0.5
        seen = rank[:, None, :] < context[:, :, None]  # [B, R, N]
        attention = scores.masked_fill(~seen[:, None], -1e30).softmax(-1)
        attention = attention * seen.any(-1)[:, None, :, None]
        read = torch.einsum("bhrt,bthd->brhd", attention, project(known, block.attn.qkv, 2)).flatten(2)
        x = x + block.attn.proj(read)
        return x + block.proj(F.gelu(block.fc(block.ln_2(x)), approximate="tanh"))

    positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
    content, query = model.wte(tokens), model.query_vector.expand(*query_positions.shape, -1)
    for block in model.blocks:
        query, content = (
            layer(block, query, content, positions, query_positions, query_context),
            layer(block, content, content, positions, positions, context),
        )
    logits = model.ln_f(query) @ model.wte.weight.t()
    logits = logits.masked_fill(torch.arange(VOCABULARY) == MASK, float("-inf"))
    return F.cross_entropy(logits.transpose(1, 2), tokens.gather(1, query_positions), reduction="none")


def drawn_order(tokens, rate, config, generator):
    """The order that `training_loss` draws."""
    target = random_targets(tokens, rate, generator)
    return rank_order(~target, target, random_turns(tokens, generator) if config.order == "random" else None)


def plain_training_losses(model, tokens, rate, draft, generator):
    """`training_loss` by `plain_nll`: joint and draft loss."""
    order = drawn_order(tokens, rate, draft, generator)
    rank = order.order.argsort(1)
    context = torch.maximum(rank + 1, order.prompt_length[:, None])
    ranks = torch.arange(int(order.prompt_length[0]), LENGTH).expand(len(tokens), -1)
    seen = ranks if draft.objective == "joint" else ranks[:, :1].expand_as(ranks)
    joint = plain_nll(model, tokens, rank, context, order.order.gather(1, ranks), seen)
    if not draft.draft_weight:
        return joint.mean(), None
    ranks, contexts = draft_queries(order, draft, generator)
    return joint.mean(), plain_nll(model, tokens, rank, context, order.order.gather(1, ranks), contexts).mean()


@pytest.fixture(params=[3, 128], ids=["blocks of 3 rows", "one block"])
def rows(request, monkeypatch):
    monkeypatch.setattr(backbone, "BLOCK_ROWS", request.param)


def random_tokens(batch: int, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, MASK, (batch, length), generator=torch.Generator().manual_seed(4))


def total(joint, draft):
    return joint if draft is None else joint + DRAFT.draft_weight * draft


@pytest.mark.parametrize("elements", [1, 40, 7 * 5, 10**6])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("excluded", [[], [slice(0, 1)], [slice(9, 10)], [slice(22, 23)], [slice(2, 3), slice(4, 10)]])
def test_cross_entropy_in_slices(elements, with_bias, excluded):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 6), (VOCABULARY, 6), (VOCABULARY,)]
    hidden, weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    targets = torch.randint(10, 22, (2, 5), generator=generator)
    upstream = torch.randn(2, 5, generator=generator)
    bias = bias if with_bias else None
    inputs = [x for x in (hidden, weight, bias) if x is not None]
    ours = cross_entropy(hidden, weight, bias, targets, excluded, elements)
    logits = F.linear(hidden, weight, bias)
    for ids in excluded:
        logits = logits.masked_fill(torch.isin(torch.arange(VOCABULARY), torch.arange(ids.start, ids.stop)), -torch.inf)
    theirs = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    assert relative_gap(ours, theirs) < 1e-5
    for mine, plain in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        assert relative_gap(mine, plain) < 1e-5


def test_cross_entropy_is_large_where_logits_are():
    """Logits of 1e4 overflow no exponential, and a token that is never sampled has an infinite loss."""
    hidden, weight = torch.full((3, 1), 100.0, requires_grad=True), torch.tensor([[100.0], [0.0], [-100.0], [99.0]])
    losses = cross_entropy(hidden, weight, None, torch.tensor([0, 1, 3]), excluded=[slice(3, 4)], elements=3)
    assert losses.tolist() == [0.0, 10000.0, float("inf")]
    assert torch.autograd.grad(losses[:2].sum(), hidden)[0].isfinite().all()


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation returns, weights' gradients apart."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **keywords or {})
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_whole_logits_never_exist():
    hidden, weight = torch.randn(300, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    targets = torch.zeros(300, dtype=torch.long)
    with Largest() as largest:
        cross_entropy(hidden, weight, None, targets, elements=9000).sum().backward()
    assert 4000 < largest.elements <= 9000  # the weight and its gradient have 4000


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("draft", [LossConfig(), DRAFT, RANDOM, PARALLEL], ids=["joint", "draft", "random", "parallel"])
@pytest.mark.parametrize("rate", [0.15, 0.6, 0.95])
def test_training_loss_of_gpt2_is_the_plain_one(rows, batch, draft, rate):
    model, tokens = tiny_gpt2(VOCABULARY, 0.3, n_layer=3).train(), random_tokens(batch)
    losses = training_loss(model, tokens, rate, draft, torch.Generator().manual_seed(6))
    ours = gradients(model, total(losses.joint, losses.draft))
    joint, drafted = plain_training_losses(model, tokens, rate, draft, torch.Generator().manual_seed(6))
    if rate == 0.15:  # one target, which has nothing to be cut back
        assert losses.draft is None
        drafted = None
    elif draft.draft_weight:
        torch.testing.assert_close(losses.draft, drafted, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.joint, joint, rtol=1e-5, atol=0)
    assert_same_gradients(ours, gradients(model, total(joint, drafted)))


def ragged(batch: int):
    """Tokens and an order with prompts of 1, 4, 7, ... tokens: rows see different numbers of ranks."""
    tokens = random_tokens(batch)
    prompts = 1 + 3 * torch.arange(batch)
    given = (
        torch.rand(tokens.shape, generator=torch.Generator().manual_seed(8)).argsort(1).argsort(1) < prompts[:, None]
    )
    return tokens, rank_order(given, ~given)


def ragged_loss(model, tokens, order) -> torch.Tensor:
    """Mean NLL of the targets of all rows, by one query a rank: those of the prompts are computed and left out."""
    ranked, ranks = tokens.gather(1, order.order), torch.arange(LENGTH).expand(len(tokens), -1)
    nll = query_nll(model, ranked, order.order, order.content_context(), order.order, ranks, targets=ranked)
    return nll[ranks >= order.prompt_length[:, None]].mean()


def test_ragged_prompts_of_gpt2(rows):
    model, (tokens, order) = tiny_gpt2(VOCABULARY, 0.3).train(), ragged(4)
    ours = gradients(model, loss := ragged_loss(model, tokens, order))
    rank, ranks = order.order.argsort(1), torch.arange(LENGTH).expand(4, -1)
    context = torch.maximum(rank + 1, order.prompt_length[:, None])
    nll = plain_nll(model, tokens, rank, context, order.order, ranks)
    plain = nll[ranks >= order.prompt_length[:, None]].mean()
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    assert_same_gradients(ours, gradients(model, plain))


def xlnet_and_twin():
    """A `xlnet` backbone and `transformers`' own with the same weights, without dropout and without a mask token."""
    model = tiny_xlnet(VOCABULARY, 0.3, n_layer=3, dropout=0.0).train()
    model.config.mask_token_id = None
    settings = {k: v for k, v in model.config.to_dict().items() if k not in ("architectures", "model_type")}
    twin = XLNetLMHeadModel(XLNetConfig(**settings)).train()
    twin.load_state_dict(model.state_dict())
    return model, twin


def twin_loss(twin, tokens, order, objective="joint") -> torch.Tensor:
    """Mean NLL of the targets by permutation masks and one-hot target mappings."""
    known = order.length if objective == "joint" else order.prompt_length
    mask = permutation_mask(order.order.argsort(1), order.prompt_length, known)
    mapping = F.one_hot(order.order, LENGTH).float()
    logits = twin(tokens, perm_mask=mask, target_mapping=mapping, use_mems=False).logits  # [B, N, V], in rank order
    target = torch.arange(LENGTH) >= order.prompt_length[:, None]
    return F.cross_entropy(logits[target], tokens.gather(1, order.order)[target])


def test_losses_and_gradients_of_xlnet_are_those_of_transformers(rows):
    model, twin = xlnet_and_twin()
    tokens, order = ragged(4)
    for loss, plain in [
        (ragged_loss(model, tokens, order), twin_loss(twin, tokens, order)),
        *(
            (
                training_loss(model, tokens, rate, config, torch.Generator().manual_seed(6)).joint,
                twin_loss(twin, tokens, drawn_order(tokens, rate, config, torch.Generator().manual_seed(6)), objective),
            )
            for rate in (0.15, 0.6, 0.95)
            for objective, order in (("joint", "ascending"), ("joint", "random"), ("parallel", "ascending"))
            if objective == "joint" or rate < 0.95  # a prompt of one token leaves no choice to any row
            for config in [LossConfig(objective, order)]
        ),
    ]:
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
        theirs = gradients_of_reached(twin, plain)
        # Both sides round: sums over all rows and offsets nearly cancel in the biases' gradients.
        assert_same_gradients(gradients_of_reached(model, loss), theirs, 3e-5)


def gradients_of_reached(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the parameters that any reaches: XLNet's segment term has none, `transformers` allows it one."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def kept_bytes(function) -> int:
    """Bytes that are kept for the backward pass of function(), each storage counted once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = function()
    del kept
    return sum(storages.values())


@pytest.mark.parametrize(
    "make", [tiny_gpt2, lambda *a: tiny_xlnet(*a, dropout=0.2)], ids=["gpt2", "xlnet with dropout"]
)
def test_gradient_checkpointing_changes_memory_only(make):
    model, tokens = make(VOCABULARY, 0.3).train(), random_tokens(3)

    def loss():
        torch.manual_seed(1)  # of the dropout
        losses = training_loss(model, tokens, 0.6, DRAFT, torch.Generator().manual_seed(6))
        return total(losses.joint, losses.draft)

    plain, kept = gradients(model, before := loss()), kept_bytes(loss)
    model.gradient_checkpointing_enable()
    again = gradients(model, after := loss())
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)
    assert_same_gradients(again, plain)
    assert kept_bytes(loss) < 0.7 * kept
    model.gradient_checkpointing_disable()
    assert kept_bytes(loss) == kept


def test_recomputed_dropout_draws_the_same_again():
    """The slope of the loss along its gradient is the gradient's norm only if both passes drop the same elements."""
    model, tokens = tiny_xlnet(VOCABULARY, 0.3, dropout=0.2).train(), random_tokens(3)

    def loss():
        torch.manual_seed(1)  # of the dropout
        return training_loss(model, tokens, 0.6, DRAFT, torch.Generator().manual_seed(6)).joint

    gradient = gradients(model, loss())
    norm = torch.stack([part.norm() for part in gradient.values()]).norm()

    def moved(distance: float) -> float:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += distance * gradient[name] / norm
            return loss().item()

    step = 1e-2
    slope = (moved(step) - moved(-2 * step)) / (2 * step)
    assert slope == pytest.approx(float(norm), rel=0.01)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_xlnet], ids=["gpt2", "xlnet"])
def test_the_last_rank_is_never_read_and_equal_rows_share_their_mask(make):
    """What the model is asked for: N - 1 tokens, one query a target, contexts once for all rows."""
    model, asked = make(VOCABULARY), {}

    def hidden(tokens, positions, content_context, query_positions, query_context):
        asked.update(tokens=tokens, contexts=(content_context, query_context), positions=query_positions)
        return model.hidden(tokens, positions, content_context, query_positions, query_context)

    spy = SimpleNamespace(hidden=hidden, output_layer=model.output_layer, never_sampled=model.never_sampled)
    tokens = random_tokens(3)
    joint = training_loss(spy, tokens, 0.6, LossConfig(), torch.Generator().manual_seed(6)).joint
    assert asked["tokens"].shape == (3, LENGTH - 1)
    assert asked["positions"].shape == (3, 7)
    assert [context.shape for context in asked["contexts"]] == [(1, LENGTH - 1), (1, 7)]
    draft = training_loss(spy, tokens, 0.6, DRAFT, torch.Generator().manual_seed(6))
    assert asked["contexts"][1].shape == (3, 7 + 4)
    torch.testing.assert_close(draft.joint, joint)
    training_loss(spy, tokens, 0.6, PARALLEL, torch.Generator().manual_seed(6))
    assert [part.shape for part in (asked["tokens"], *asked["contexts"])] == [(3, 5), (1, 5), (1, 7)]  # the prompt only


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_xlnet], ids=["gpt2", "xlnet"])
def test_mixed_precision(make):
    """In bfloat16 by autocast: a float32 loss near the exact one, and gradients of the parameters' own dtype."""
    model, tokens = make(VOCABULARY, 0.2), random_tokens(3)
    exact = training_loss(model, tokens, 0.6, DRAFT, torch.Generator().manual_seed(6))
    wanted = gradients(model, exact.joint)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = training_loss(model, tokens, 0.6, DRAFT, torch.Generator().manual_seed(6))
    assert losses.joint.dtype == torch.float32
    torch.testing.assert_close(losses.joint, exact.joint, rtol=0.02, atol=0)
    ours = gradients(model, losses.joint)
    for name, gradient in ours.items():
        assert gradient.dtype == torch.float32
        assert F.cosine_similarity(gradient.flatten(), wanted[name].flatten(), dim=0) > 0.98, name
