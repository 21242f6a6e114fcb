"""GPT-2 as an any-subset autoregressive model: rotary positions, and a query stream that knows its target position.

Pre-LN blocks, GELU-tanh, fused qkv, biases and tied embeddings are GPT-2's. There are two differences. Rotary positions
(arXiv 2104.09864) replace the learned absolute ones: keys are turned by their own position, queries by the position to
be predicted. And the positions to be predicted run through the same weights as a second stream, which starts from one
learned vector (XLNet's two streams, arXiv 1906.08237).

Shapes: B rows of the batch, C content tokens, Q queries, R = C + Q, T visible ranks, E width, H heads, D = E / H.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from asarm.models.backbone import AnyOrderModel, RowBlock, check_settings, joined, readable, visibility
from asarm.models.kv_cache import KeyValueCache
from asarm.models.ops import (
    Rotary,
    linear,
    normed_linear,
    recompute_in_backward,
    rotary_at,
    rotary_of,
    rotary_table,
    rotate,
)
from asarm.tokenization.codec import TextCodec
from asarm.utils.config import check, check_at_least

# So few rows take the time of reading the weights: one product, some of which is not needed, is faster than two.
FEW_ROWS = 32


@strict
class AnyOrderGPT2Config(PretrainedConfig):
    """Shape of the model. Names are GPT-2's; see also `AnyOrderModel`. Raises InputError for shapes that cannot be.

    rotary_base: base of the rotary frequencies.
    """

    model_type = "asarm-gpt2"

    vocab_size: int = 50258
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float | int = 1e-5
    initializer_range: float | int = 0.02
    rotary_base: float | int = 10000.0
    mask_token_id: int | None = None
    n_tokens: int | None = None
    gap_end_token_id: int | None = None
    draft_head: int = 0
    draft_recurrent: bool = False
    draft_vocabulary: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_settings(self, "n_embd", "n_layer", "n_head", "rotary_base")
        check_at_least(self, layer_norm_epsilon=0)
        check(
            self.n_embd % (2 * self.n_head) == 0,
            f"n_embd={self.n_embd} must give n_head={self.n_head} heads of even width",
        )


class Attention(nn.Module):
    def __init__(self, config: AnyOrderGPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def heads(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x.unflatten(-1, (count, -1)).transpose(1, 2)  # [B, R, count * D] -> [B, count, R, D]

    def queries_keys_values(
        self, norm: nn.Module, x: torch.Tensor, count: int, start: int, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [B, H, R - start, D] of the rows x [B, R, E] from `start` on, keys and values [B, H, count, D] of the
        first rows; queries and keys are turned by their positions.

        norm: the layer norm that the rows have yet to go through.
        """
        weight, bias, width, head = self.qkv.weight, self.qkv.bias, x.shape[-1], self.n_head
        if x.shape[0] * x.shape[1] <= FEW_ROWS:
            every = self.heads(normed_linear(norm, x, weight, bias), 3 * head)  # [B, 3 * H, R, D]
            turned = rotate(every[:, : 2 * head], rotary)
            return turned[:, :head, start:], turned[:, head:, :count], every[:, 2 * head :, :count]
        cos, sin = rotary
        keys_values = self.heads(normed_linear(norm, x[:, :count], weight[width:], bias[width:]), 2 * head)
        queries = self.heads(normed_linear(norm, x[:, start:], weight[:width], bias[:width]), head)
        keys = rotate(keys_values[:, :head], (cos[:, :, :count], sin[:, :, :count]))
        return rotate(queries, (cos[:, :, start:], sin[:, :, start:])), keys, keys_values[:, head:]

    def read(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        blocks: list[RowBlock],
        mask: torch.Tensor,
        empty: torch.Tensor | None,
    ) -> torch.Tensor:
        """What queries [B, H, R, D], the rows of `blocks`, read of keys and values [B, H, T, D]: [B, R, E].

        mask: [1 or B, 1, C + Q, T], added to the scores of all rows. empty: as in `Visibility`.
        """
        parts = queries.split([block.stop - block.start for block in blocks], dim=2)
        read = [
            F.scaled_dot_product_attention(
                part,
                keys[:, :, : block.reach],
                values[:, :, : block.reach],
                attn_mask=mask[:, :, block.start : block.stop, : block.reach],
            )
            for part, block in zip(parts, blocks, strict=True)
        ]  # [B, H, rows of the block, D] each
        return recompute_in_backward(self.output, empty, *read)

    def output(self, empty: torch.Tensor | None, *read: torch.Tensor) -> torch.Tensor:
        """What the heads read, block by block [B, H, ., D] -> [B, R, E]."""
        return linear(self.proj, joined([part.transpose(1, 2).flatten(2) for part in read], empty))


class Block(GradientCheckpointingLayer):
    def __init__(self, config: AnyOrderGPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        hidden = normed_linear(self.ln_2, x, self.fc.weight, self.fc.bias)
        return recompute_in_backward(
            lambda hidden: linear(self.proj, F.gelu(hidden, approximate="tanh")),
            hidden,
        )

    def forward(
        self,
        x: torch.Tensor,
        count: int,
        blocks: list[RowBlock],
        rotary: Rotary,
        mask: torch.Tensor,
        empty: torch.Tensor | None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> torch.Tensor:
        """Rows x [B, C + Q, E], `count` of them content -> the rows of `blocks`, which are all or the last of them.

        rotary, mask, empty: of all rows, as in `Attention`. cache: stores the content's keys and values of `layer`.
        """
        start = blocks[0].start
        queries, keys, values = self.attn.queries_keys_values(self.ln_1, x, count, start, rotary)
        keys, values = readable(keys, values, cache, layer, mask.shape[-1])
        x = x[:, start:] + self.attn.read(queries, keys, values, blocks, mask, empty)
        return x + self.mlp(x)


class AnyOrderGPT2(AnyOrderModel):
    """The two-stream GPT-2: see the module's docstring, and `AnyOrderModel` for the contract."""

    config: AnyOrderGPT2Config
    config_class = AnyOrderGPT2Config
    base_model_prefix = "model"

    def __init__(self, config: AnyOrderGPT2Config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.query_vector = nn.Parameter(torch.zeros(config.n_embd))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.add_draft_head(config.n_embd)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """GPT-2's initialisation: normal weights, zero biases, residual projections scaled by 1 / sqrt(2 layers)."""
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            for proj in (module.attn.proj, module.proj):
                nn.init.normal_(proj.weight, std=std / (2 * self.config.n_layer) ** 0.5)
        if isinstance(module, AnyOrderGPT2):
            nn.init.normal_(module.query_vector, std=std)

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, embeddings: nn.Module) -> None:
        self.wte = cast(nn.Embedding, embeddings)

    def new_cache(self, batch: int, capacity: int, span: int, static: bool = False) -> KeyValueCache:
        config, width = self.config, self.config.n_embd // self.config.n_head
        shape = (config.n_layer, batch, config.n_head, capacity, width)
        cache = KeyValueCache(shape, self.device, self.compute_dtype, static)
        cache.rotary = rotary_table(self.rotary(torch.arange(span, device=self.device)[None]))
        return cache

    def rotary(self, positions: torch.Tensor) -> Rotary:
        """What turns vectors of heads by the rotary angles at integer positions [B, R], float32."""
        config = self.config
        width = config.n_embd // config.n_head
        exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
        return rotary_of(positions[:, None, :, None].float() * config.rotary_base**-exponents)

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        content_context: torch.Tensor,
        query_positions: torch.Tensor,
        query_context: torch.Tensor,
        cache: KeyValueCache | None = None,
        beside: torch.Tensor | None = None,
    ) -> torch.Tensor:
        count = tokens.shape[1]
        if cache is not None:
            cache.begin(count)
        queries = self.query_vector.expand(*query_positions.shape, -1)
        x = torch.cat((self.wte(tokens), queries), dim=1)  # [B, R, E]
        row_positions = torch.cat((positions, query_positions), dim=1)  # [B, R]
        rotary = self.rotary(row_positions) if cache is None else rotary_at(cache.rotary, row_positions)
        visible = visibility(count, content_context, query_context, cache, beside)
        mask = torch.zeros(visible.unseen.shape, dtype=x.dtype, device=x.device).masked_fill(
            visible.unseen, float("-inf")
        )
        for layer, block in enumerate(self.blocks):
            # The content stream ends with the keys and values of the last layer.
            rows = visible.query_rows if layer == len(self.blocks) - 1 else visible.every_row
            x = block(x, count, rows, rotary, mask, visible.empty, cache, layer)
        return self.ln_f(x)

    def output_layer(self) -> tuple[torch.Tensor, None]:
        return self.wte.weight, None


def new_gpt2(codec: TextCodec, **shape: Any) -> AnyOrderGPT2:
    """A model with random weights for the tokens of a codec. shape: fields of its config, vocab_size among them."""
    config = AnyOrderGPT2Config(
        mask_token_id=codec.mask_token_id,
        eos_token_id=codec.eos_token_id,
        pad_token_id=codec.tokenizer.pad_token_id,
        **shape,
    )
    return AnyOrderGPT2(config)


AutoConfig.register(AnyOrderGPT2Config.model_type, AnyOrderGPT2Config)
AutoModel.register(AnyOrderGPT2Config, AnyOrderGPT2)
