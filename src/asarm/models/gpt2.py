"""GPT-2 as an any-subset autoregressive model: rotary positions and a second, target-position query stream.

Pre-LN blocks, GELU-tanh, fused qkv, biases and tied embeddings are GPT-2's. What differs: learned absolute positions
give way to rotary ones (arXiv 2104.09864; keys turn by their own position, queries by the place to be predicted),
and places to be predicted run through the same weights from one learned vector (two streams: XLNet, arXiv 1906.08237).

Shapes: B rows of the batch, C content tokens, Q queries, R = C + Q, T visible ranks, E width, H heads, D = E / H.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from asarm.models.backbone import AnyOrderModel, RowBlock, joined_contexts, row_blocks
from asarm.models.kv_cache import KeyValueCache
from asarm.models.ops import linear, recomputed


class AnyOrderGPT2Config(PretrainedConfig):
    """Shape of the model. Names are GPT-2's; `rotary_base` is the base of the rotary frequencies.

    draft_head: hidden width of the draft head (`asarm.models.draft_head`); 0 for none.
    """

    model_type = "asarm-gpt2"

    def __init__(
        self,
        vocab_size: int = 50258,
        n_positions: int = 1024,
        n_embd: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        rotary_base: float = 10000.0,
        mask_token_id: int | None = None,
        draft_head: int = 0,
        **kwargs,
    ):
        if n_embd % n_head or (n_embd // n_head) % 2:
            raise ValueError(f"n_embd={n_embd} must give n_head={n_head} heads of even width")
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.rotary_base = rotary_base
        self.mask_token_id = mask_token_id
        self.draft_head = draft_head
        super().__init__(**kwargs)


def rotary_table(positions: torch.Tensor, head_dim: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [B, 1, R, D / 2] (float32) of the rotary angles at integer positions [B, R]."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the halves of x [B, H, R, D] by the angles of `rotary_table`."""
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: AnyOrderGPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # [B, R, E] -> [B, H, R, D]

    def keys_values(self, norm: nn.Module, content: torch.Tensor, rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys, turned by their positions, and values of the content stream before its norm: [B, C, E] -> 2 x
        [B, H, C, D]."""
        width = content.shape[-1]
        weight, bias = self.qkv.weight[width:], self.qkv.bias[width:]
        keys, values = recomputed(lambda x: linear(norm(x), weight, bias), content).chunk(2, dim=-1)
        return rotate(self.heads(keys), *rotary), self.heads(values)

    def attend(self, norm: nn.Module, x: torch.Tensor, rotary, keys, values, blocks, mask, empty) -> torch.Tensor:
        """Rows x [B, R, E] before their norm, cut into `blocks`, read keys and values [B, H, T, D].

        mask [1 or B, 1, C + Q, T] is added to the scores; empty [1 or B, R, 1] read nothing.
        """
        width = x.shape[-1]
        weight, bias = self.qkv.weight[:width], self.qkv.bias[:width]
        queries = rotate(self.heads(recomputed(lambda x: linear(norm(x), weight, bias), x)), *rotary)
        parts = queries.split([block.stop - block.first for block in blocks], dim=2)
        out = [
            F.scaled_dot_product_attention(
                part,
                keys[:, :, : block.reach],
                values[:, :, : block.reach],
                attn_mask=mask[:, :, block.first : block.stop, : block.reach],
            )
            for part, block in zip(parts, blocks, strict=True)
        ]  # [B, H, rows of the block, D] each
        return recomputed(self.output, empty, *out)

    def output(self, empty: torch.Tensor, *out: torch.Tensor) -> torch.Tensor:
        """What the heads read, in blocks [B, H, ., D] -> [B, R, E]."""
        joined = torch.cat([part.transpose(1, 2).flatten(2) for part in out], dim=1).masked_fill(empty, 0.0)
        return linear(joined, self.proj.weight, self.proj.bias)


class Block(GradientCheckpointingLayer):
    def __init__(self, config: AnyOrderGPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        hidden = recomputed(lambda x: linear(self.ln_2(x), self.fc.weight, self.fc.bias), x)
        return recomputed(
            lambda hidden: linear(F.gelu(hidden, approximate="tanh"), self.proj.weight, self.proj.bias), hidden
        )

    def forward(self, x, count: int, blocks: list[RowBlock], rotary, mask, empty, cache=None, index: int = 0):
        """Rows x [B, R, E], of which the first `count` are content -> the rows of `blocks`, the last of the R.

        rotary, mask, empty: of all rows, see `hidden`. cache: takes the content's keys and values as layer `index`.
        """
        cos, sin = rotary
        keys, values = self.attn.keys_values(self.ln_1, x[:, :count], (cos[:, :, :count], sin[:, :, :count]))
        if cache is not None:
            cache.write(index, keys, values)
            keys, values = cache.read(index, mask.shape[-1])
        elif count == 0:
            keys = values = x.new_zeros(len(x), self.attn.n_head, 1, cos.shape[-1] * 2)
        first = blocks[0].first
        x, rotary = x[:, first:], (cos[:, :, first:], sin[:, :, first:])
        x = x + self.attn.attend(self.ln_1, x, rotary, keys, values, blocks, mask, empty[:, first:])
        return x + self.mlp(x)


class AnyOrderGPT2(AnyOrderModel):
    """The two-stream GPT-2: see the module's docstring, and `AnyOrderModel` for the contract."""

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
    def _init_weights(self, module):
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

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, embeddings):
        self.wte = embeddings

    def new_cache(self, batch: int, capacity: int, span: int, static: bool = False) -> KeyValueCache:
        config, width = self.config, self.config.n_embd // self.config.n_head
        return KeyValueCache(
            config.n_layer, batch, config.n_head, capacity, width, self.device, self.compute_dtype, static
        )

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        content_context: torch.Tensor,
        query_positions: torch.Tensor,
        query_context: torch.Tensor,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        count = tokens.shape[1]
        x = torch.cat((self.wte(tokens), self.query_vector.expand(*query_positions.shape, -1)), dim=1)  # [B, R, E]
        cos, sin = rotary_table(
            torch.cat((positions, query_positions), dim=1),
            self.config.n_embd // self.config.n_head,
            self.config.rotary_base,
        )  # [B, 1, R, D / 2]
        context = joined_contexts(content_context, query_context)  # [1 or B, R]
        # With nothing to see at all one scratch key stands in, and `empty` wipes out what was read from it.
        seen = max(count, 1) if cache is None else cache.seen(context)
        visible = torch.arange(seen, device=x.device) < context.clamp(min=1)[:, None, :, None]  # [1 or B, 1, R, T]
        mask = torch.zeros(visible.shape, dtype=x.dtype, device=x.device).masked_fill(~visible, float("-inf"))
        empty = (context == 0)[..., None]  # [1 or B, R, 1]
        every, queries = row_blocks(context, count, seen)
        for index, block in enumerate(self.blocks):
            # Nobody reads the content stream behind its last keys and values.
            rows = queries if index == len(self.blocks) - 1 else every
            x = block(x, count, rows, (cos, sin), mask, empty, cache, index)
        return self.ln_f(x)

    def output_layer(self) -> tuple[torch.Tensor, None]:
        return self.wte.weight, None


AutoConfig.register(AnyOrderGPT2Config.model_type, AnyOrderGPT2Config)


AutoModel.register(AnyOrderGPT2Config, AnyOrderGPT2)
