"""Llama, Qwen2.5 and Qwen3 as any-subset autoregressive models: left to right they are what they were.

Pre-norm blocks with RMSNorm, rotary positions, SwiGLU and grouped heads, under the names of `transformers`. Flags tell
the families apart: biases of q, k and v (Qwen2.5), norms of the heads of q and k (Qwen3).

A causal model predicts a position from the row of the token to its left. So a query starts from that token's embedding,
is turned by that token's position, and adds `query_vector`, zero at first. Where the query's context does not include
the token to its left, `no_left` stands in, so that a prediction is a function of what its context holds and of nothing
else. The content stream is causal by rank, the prompt too: a prompt without a gap is read as in pretraining, and the
text after it is predicted as by the causal model.

Shapes: B rows of the batch, C content tokens, Q queries, R = C + Q, T visible ranks, E width, H heads of queries,
G heads of keys and values, D head width.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from asarm.models.backbone import AnyOrderModel, RowBlock, check_settings, joined, readable, visibility
from asarm.models.kv_cache import KeyValueCache, TokenCache
from asarm.models.ops import (
    RMSNorm,
    Rotary,
    linear,
    linear_together,
    recompute_in_backward,
    rotary_at,
    rotary_of,
    rotary_table,
    rotate,
)
from asarm.models.rank_order import left_neighbours
from asarm.utils.config import check, check_at_least


@strict
class AnyOrderLlamaConfig(PretrainedConfig):
    """Shape of the model. Names are Llama's; see also `AnyOrderModel`. Raises InputError for shapes that cannot be.

    rope_parameters: as in `transformers`. qkv_bias, output_bias, mlp_bias: whether these linear layers have biases.
    qk_norm: whether the heads of queries and keys go through a norm. head_dim: 0 means hidden_size / heads.
    """

    model_type = "asarm-llama"
    attribute_map = {"n_positions": "max_position_embeddings"}  # noqa: RUF012 (transformers' name)

    vocab_size: int = 49153
    max_position_embeddings: int = 8192
    hidden_size: int = 576
    intermediate_size: int = 1536
    num_hidden_layers: int = 30
    num_attention_heads: int = 9
    num_key_value_heads: int = 3
    head_dim: int = 0
    rms_norm_eps: float | int = 1e-5
    rope_parameters: dict | None = None
    initializer_range: float | int = 0.02
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    mask_token_id: int | None = None
    n_tokens: int | None = None
    gap_end_token_id: int | None = None
    draft_head: int = 0
    draft_recurrent: bool = False
    draft_vocabulary: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        check_at_least(self, rms_norm_eps=0, **dict.fromkeys(sizes, 1))
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.rope_parameters = self.rope_parameters or {"rope_type": "default", "rope_theta": 10000.0}
        super().__post_init__(**kwargs)
        check_settings(self, "head_dim")
        heads, keys = self.num_attention_heads, self.num_key_value_heads
        check(heads % keys == 0, f"num_key_value_heads={keys} must divide num_attention_heads={heads}")
        check(self.head_dim % 2 == 0, f"head_dim={self.head_dim} is odd; what is turned needs an even width")


class RotaryAngles(nn.Module):
    """Rotary frequencies, scaled as the config says.

    They do not depend on the length of the sequence, or what is in the cache would change while it grows. So `dynamic`
    scaling, which begins beyond max_position_embeddings, is never in effect.
    """

    bits: torch.Tensor

    def __init__(self, config: AnyOrderLlamaConfig):
        super().__init__()
        with torch.device("cpu"):
            theirs = LlamaRotaryEmbedding(cast(Any, config))
        self.frequencies, self.scale = theirs.inv_freq.tolist(), theirs.attention_scaling
        # Bits of float32 numbers: as integers they are not rounded when the model is cast to another dtype.
        self.register_buffer("bits", torch.empty(len(self.frequencies), dtype=torch.int32), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Fill the buffer."""
        self.bits.copy_(torch.tensor(self.frequencies, device="cpu", dtype=torch.float32).view(torch.int32))

    def forward(self, positions: torch.Tensor) -> Rotary:
        """What turns vectors of heads at integer positions [B, R], float32."""
        return rotary_of(positions[:, None, :, None].float() * self.bits.view(torch.float32), self.scale)


class MaskedBlock(NamedTuple):
    """Rows that read keys together, and what is added to their scores [1 or B, 1, H / G * rows, reach]."""

    block: RowBlock
    mask: torch.Tensor


def masked_blocks(blocks: list[RowBlock], unseen: torch.Tensor, group: int, dtype: torch.dtype) -> list[MaskedBlock]:
    """The blocks with their masks. unseen: [1 or B, 1, R, T]. group: how many heads of queries share keys, H / G."""
    result = []
    for block in blocks:
        hidden = unseen[:, :, block.start : block.stop, : block.reach].repeat(1, 1, group, 1)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, float("-inf"))
        result.append(MaskedBlock(block, mask))
    return result


class Attention(nn.Module):
    def __init__(self, config: AnyOrderLlamaConfig):
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        query_width, key_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.key_heads, self.has_norms = config.num_key_value_heads, config.qk_norm
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(width, query_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, key_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, key_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_width, width, bias=config.output_bias)
        if config.qk_norm:
            self.q_norm: nn.Module = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm: nn.Module = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        else:
            self.q_norm, self.k_norm = nn.Identity(), nn.Identity()

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.head_dim))  # [B, R, H * D] -> [B, R, H, D]

    def queries_keys_values(
        self, x: torch.Tensor, count: int, start: int, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [B, H, R - start, D] of the rows x [B, R, E] from `start` on, keys and values [B, G, count, D] of the
        first rows; queries and keys are turned by their positions."""
        every = None if self.has_norms else linear_together((self.q_proj, self.k_proj, self.v_proj), x)
        if every is not None:
            heads = self.heads(every).transpose(1, 2)  # [B, H + 2 * G, R, D]
            turned = rotate(heads[:, : -self.key_heads], rotary)
            queries, keys = turned[:, : -self.key_heads, start:], turned[:, -self.key_heads :, :count]
            return queries, keys, heads[:, -self.key_heads :, :count]
        cos, sin = rotary
        content = x[:, :count]
        keys = self.k_norm(self.heads(linear(self.k_proj, content))).transpose(1, 2)
        values = self.heads(linear(self.v_proj, content)).transpose(1, 2)
        queries = self.q_norm(self.heads(linear(self.q_proj, x[:, start:]))).transpose(1, 2)
        keys = rotate(keys, (cos[:, :, :count], sin[:, :, :count]))
        return rotate(queries, (cos[:, :, start:], sin[:, :, start:])), keys, values

    def read(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        blocks: list[MaskedBlock],
        empty: torch.Tensor | None,
    ) -> torch.Tensor:
        """What queries [B, H, R, D], the rows of `blocks`, read of keys and values [B, G, T, D]: [B, R, E].

        empty: as in `Visibility`.
        """
        parts = queries.split([block.stop - block.start for block, _ in blocks], dim=2)
        read = []
        for part, (block, mask) in zip(parts, blocks, strict=True):
            grouped = part.unflatten(1, (-1, self.group)).flatten(2, 3)  # [B, G, H / G * rows, D]
            out = F.scaled_dot_product_attention(
                grouped, keys[:, :, : block.reach], values[:, :, : block.reach], attn_mask=mask
            )
            read.append(out.unflatten(2, (self.group, -1)).flatten(1, 2))  # [B, H, rows, D]
        return recompute_in_backward(self.output, empty, *read)

    def output(self, empty: torch.Tensor | None, *read: torch.Tensor) -> torch.Tensor:
        """What the heads read, block by block [B, H, ., D] -> [B, R, E]."""
        return linear(self.o_proj, joined([part.transpose(1, 2).flatten(2) for part in read], empty))


class FeedForward(nn.Module):
    def __init__(self, config: AnyOrderLlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Rows x [B, R, E], added to those of the residual stream [B, R, E]."""
        if not torch.is_grad_enabled():
            gate = linear(self.gate_proj, x, silu=True)
            return linear(self.down_proj, linear(self.up_proj, x, times=gate), plus=residual)
        gate, up = linear(self.gate_proj, x), linear(self.up_proj, x)
        return residual + recompute_in_backward(lambda gate, up: linear(self.down_proj, F.silu(gate) * up), gate, up)


class Block(GradientCheckpointingLayer):
    def __init__(self, config: AnyOrderLlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: torch.Tensor,
        count: int,
        blocks: list[MaskedBlock],
        rotary: Rotary,
        empty: torch.Tensor | None,
        ranks: int,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> torch.Tensor:
        """Rows x [B, C + Q, E], `count` of them content -> the rows of `blocks`, which are all or the last of them.

        rotary, empty: of all rows. ranks: T. cache: stores the content's keys and values of `layer`.
        """
        start = blocks[0].block.start
        queries, keys, values = self.self_attn.queries_keys_values(self.input_layernorm(x), count, start, rotary)
        keys, values = readable(keys, values, cache, layer, ranks)
        x = x[:, start:] + self.self_attn.read(queries, keys, values, blocks, empty)
        return self.mlp(self.post_attention_layernorm(x), x)


class Transformer(nn.Module):
    """The parameters under the checkpoint's prefix `model`; `AnyOrderLlama` runs them."""

    def __init__(self, config: AnyOrderLlamaConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.query_vector = nn.Parameter(torch.zeros(config.hidden_size))
        self.no_left = nn.Parameter(torch.zeros(config.hidden_size))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = RotaryAngles(config)


class AnyOrderLlama(AnyOrderModel):
    """The two-stream Llama: see the module's docstring, and `AnyOrderModel` for the contract.

    Content tokens see no higher ranks than their own, whatever their contexts.
    """

    config: AnyOrderLlamaConfig
    config_class = AnyOrderLlamaConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (transformers' name)

    def __init__(self, config: AnyOrderLlamaConfig):
        super().__init__(config)
        self.model = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.add_draft_head(config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights, zero biases; a query is its left neighbour, and without one an average token."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, Transformer):
            nn.init.zeros_(module.query_vector)
            nn.init.zeros_(module.no_left)
        if isinstance(module, RotaryAngles):
            module.reset()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, embeddings: nn.Module) -> None:
        self.model.embed_tokens = cast(nn.Embedding, embeddings)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def new_cache(self, batch: int, capacity: int, span: int, static: bool = False) -> TokenCache:
        config = self.config
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        cache = TokenCache(shape, self.device, self.compute_dtype, static)
        cache.rotary = rotary_table(self.model.rotary(torch.arange(-1, span, device=self.device)[None]))
        return cache

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        content_context: torch.Tensor,
        query_positions: torch.Tensor,
        query_context: torch.Tensor,
        cache: TokenCache | None = None,
        beside: torch.Tensor | None = None,
    ) -> torch.Tensor:
        count, config = tokens.shape[1], self.config
        ranks = torch.arange(count, device=tokens.device)[None] if cache is None else cache.begin(count)
        visible = visibility(count, content_context.minimum(ranks + 1), query_context, cache, beside)
        slots = visible.unseen.shape[-1]  # T
        if cache is not None:
            cache.write_tokens(tokens, positions)
            known, known_positions = cache.tokens[:, :slots], cache.positions[:, :slots]  # [B, T]
        else:  # a scratch token stands in where there is no content
            padding = (0, slots - count)
            known, known_positions = F.pad(tokens, padding), F.pad(positions, padding)
        unseen = visible.unseen[:, 0] if visible.empty is None else visible.unseen[:, 0] | visible.empty
        seen = ~unseen[:, count:]  # [1 or B, Q, T]
        left = left_neighbours(known, known_positions, query_positions, seen)  # [B, Q]
        embedding = self.model.embed_tokens
        queries = torch.where((left >= 0)[..., None], embedding(left.clamp(min=0)), self.model.no_left)
        x = torch.cat((embedding(tokens), queries + self.model.query_vector), dim=1)  # [B, R, E]
        after = torch.cat((positions + 1, query_positions), dim=1)  # a cache's table begins with position -1
        rotary = self.model.rotary(after - 1) if cache is None else rotary_at(cache.rotary, after)
        group = config.num_attention_heads // config.num_key_value_heads
        every_row, query_rows = (
            masked_blocks(blocks, visible.unseen, group, x.dtype) for blocks in (visible.every_row, visible.query_rows)
        )
        for layer, block in enumerate(self.model.layers):
            # The content stream ends with the keys and values of the last layer.
            rows = query_rows if layer == config.num_hidden_layers - 1 else every_row
            x = block(x, count, rows, rotary, visible.empty, slots, cache, layer)
        return self.model.norm(x)

    def output_layer(self) -> tuple[torch.Tensor, None]:
        return self.lm_head.weight, None


AutoConfig.register(AnyOrderLlamaConfig.model_type, AnyOrderLlamaConfig)
AutoModel.register(AnyOrderLlamaConfig, AnyOrderLlama)
