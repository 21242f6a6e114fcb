"""XLNet as an any-subset autoregressive model: released weights, attention evaluated for the rows asked for only.

Post-LN blocks with the relative attention of Transformer-XL (arXiv 1901.02860) and XLNet's two streams (arXiv
1906.08237). Row i scores key j by (q_i + r_w) . k_j + (q_i + r_r) . (sinusoid(pos_i - pos_j) W_r): the sinusoids of all
offsets are projected once, rows are scored against all offsets, and each row picks those of the keys it sees. There is
no segment term, for no segments are given.

Tokens come in rank order (see `asarm.order`). Parameters have the names and shapes of `transformers`'
`XLNetLMHeadModel`: the same checkpoints serve both.

Shapes: B rows of the batch, C content tokens, Q queries, R = C + Q, T visible ranks, E width, H heads, D head width,
S span (positions are below it), V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import XLNetConfig
from transformers.activations import ACT2FN

from asarm.cache import KeyValueCache
from asarm.errors import InputError
from asarm.models.backbone import AnyOrderModel
from asarm.models.linear import linear


class AnyOrderXLNetConfig(XLNetConfig):
    """XLNet's config and what it lacks.

    n_positions: longest text that is accepted, in tokens. The weights set no limit; XLNet was trained on 512.
    mask_token_id: the token that is never sampled; `asarm.models.load` takes it from the tokenizer.
    """

    n_positions: int = 1024
    mask_token_id: int | None = None

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Write config.json; it names the class of `transformers` that loads the weights too."""
        self.architectures = ["XLNetLMHeadModel"]
        super().save_pretrained(save_directory, **kwargs)


def check_supported(config: AnyOrderXLNetConfig) -> None:
    """Raise InputError for settings that change the attention in ways this model does not know."""
    if config.attn_type != "bi":
        raise InputError(f"attn_type={config.attn_type!r} is Transformer-XL's; XLNet models have 'bi'")
    if config.bi_data:
        raise InputError("bi_data=True reads half of the batch backwards; set it to false in config.json")
    if config.d_model % 2:
        raise InputError(f"d_model={config.d_model} is odd; sines and cosines of the positions need an even width")


def sinusoids(span: int, config: AnyOrderXLNetConfig, device) -> torch.Tensor:
    """Sines, then cosines, of the offsets 1-S..S-1: [2S-1, E] float32."""
    offsets = torch.arange(1 - span, span, device=device, dtype=torch.float32)
    if config.clamp_len > 0:
        offsets = offsets.clamp(-config.clamp_len, config.clamp_len)
    exponents = torch.arange(0, config.d_model, 2, device=device, dtype=torch.float32) / config.d_model
    angles = offsets[:, None] / 10000**exponents  # [2S-1, E / 2]
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class PositionedCache(KeyValueCache):
    """A cache that also holds the position of each rank.

    tables: each layer's projected offsets [H, D, 2S-1], made once for the model and the span S of this cache.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], tables: list[torch.Tensor], device, dtype, static: bool):
        super().__init__(*shape, device, dtype, static)
        _, batch, _, capacity, _ = shape
        self.positions = torch.zeros(batch, capacity + 1, dtype=torch.long, device=device)
        self.tables = tables

    def write_positions(self, positions: torch.Tensor) -> None:
        """Put positions [B, C] of the next C ranks behind each row's length, as `write` does with keys and values."""
        slots = self.lengths[:, None] + torch.arange(positions.shape[1], device=positions.device)  # [B, C]
        self.positions.scatter_(1, slots.clamp(max=self.capacity), positions)

    def row_tensors(self) -> list[torch.Tensor]:
        return [*super().row_tensors(), self.positions]

    def keep_rows(self, rows: torch.Tensor) -> None:
        super().keep_rows(rows)
        self.positions = self.positions[rows]


class RelativeAttention(nn.Module):
    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__()
        heads, shape = (config.n_head, config.d_head), (config.d_model, config.n_head, config.d_head)
        self.q = nn.Parameter(torch.empty(shape))
        self.k = nn.Parameter(torch.empty(shape))
        self.v = nn.Parameter(torch.empty(shape))
        self.o = nn.Parameter(torch.empty(shape))
        self.r = nn.Parameter(torch.empty(shape))
        self.r_r_bias = nn.Parameter(torch.empty(heads))
        self.r_w_bias = nn.Parameter(torch.empty(heads))
        # The segment term's weights are kept for the way back; they are buffers because no gradient reaches them.
        self.register_buffer("r_s_bias", torch.empty(heads))
        self.register_buffer("seg_embed", torch.empty(2, *heads))
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def project(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (x @ weight.flatten(1)).unflatten(-1, weight.shape[1:])  # [..., E] -> [..., H, D]

    def keys_values(self, content: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the content stream: [B, C, E] -> 2 x [B, H, C, D]."""
        return self.project(content, self.k).transpose(1, 2), self.project(content, self.v).transpose(1, 2)

    def table(self, sinusoids: torch.Tensor) -> torch.Tensor:
        """Projected sinusoids of all offsets: [2S-1, E] -> [H, D, 2S-1]."""
        waves = self.dropout(sinusoids).to(self.r.dtype)
        return (self.r.flatten(1).t() @ waves.t()).unflatten(0, self.r.shape[1:])

    def position_scores(self, queries: torch.Tensor, table: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Scores [B, H, R, T] of queries [B, R, H, D] by position; offsets [B, R, T] index the last axis of table."""
        batch, rows, heads, width = queries.shape
        queries = (queries + self.r_r_bias.to(queries.dtype)) * width**-0.5
        by_offset = torch.bmm(queries.flatten(0, 1).transpose(0, 1), table)  # [H, B * R, 2S-1]
        picked = by_offset.gather(2, offsets.flatten(0, 1).expand(heads, -1, -1))  # [H, B * R, T]
        return picked.unflatten(1, (batch, rows)).transpose(0, 1)

    def attend(self, x, keys, values, table, offsets, visible, empty) -> torch.Tensor:
        """Rows x [B, R, E] read keys and values [B, H, T, D] where visible [B, 1, R, T]; empty [B, R, 1] read none."""
        queries = self.project(x, self.q)  # [B, R, H, D]
        scores = self.position_scores(queries, table, offsets).masked_fill(~visible, float("-inf"))
        queries = (queries + self.r_w_bias.to(queries.dtype)).transpose(1, 2)  # [B, H, R, D]
        dropped = self.dropout.p if self.training else 0.0
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=scores, dropout_p=dropped)
        out = out.transpose(1, 2).flatten(2).masked_fill(empty, 0.0)  # [B, R, H * D]
        return self.layer_norm(x + self.dropout(linear(out, self.o.flatten(1))))


class FeedForward(nn.Module):
    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.layer_1 = nn.Linear(config.d_model, config.d_inner)
        self.layer_2 = nn.Linear(config.d_inner, config.d_model)
        self.activation = ACT2FN[config.ff_activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.activation(linear(x, self.layer_1.weight, self.layer_1.bias))
        out = linear(self.dropout(hidden), self.layer_2.weight, self.layer_2.bias)
        return self.layer_norm(x + self.dropout(out))


class Block(nn.Module):
    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__()
        self.rel_attn = RelativeAttention(config)
        self.ff = FeedForward(config)


class Transformer(nn.Module):
    """The parameters under the checkpoint's prefix `transformer`; `AnyOrderXLNet` runs them."""

    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__()
        self.word_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.mask_emb = nn.Parameter(torch.empty(1, 1, config.d_model))
        self.layer = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.dropout = nn.Dropout(config.dropout)


class AnyOrderXLNet(AnyOrderModel):
    """XLNet in rank order. See the module's docstring, and `AnyOrderModel` for the contract."""

    config_class = AnyOrderXLNetConfig
    base_model_prefix = "transformer"
    _tied_weights_keys = {"lm_loss.weight": "transformer.word_embedding.weight"}  # noqa: RUF012 (transformers' name)

    def __init__(self, config: AnyOrderXLNetConfig):
        check_supported(config)
        super().__init__(config)
        self.transformer = Transformer(config)
        self.lm_loss = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        """XLNet's initialisation: everything normal but layer norms and the biases of linear layers."""
        super()._init_weights(module)
        if isinstance(module, (RelativeAttention, Transformer)):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                nn.init.normal_(tensor, std=self.config.initializer_range)

    def get_input_embeddings(self):
        return self.transformer.word_embedding

    def set_input_embeddings(self, embeddings):
        self.transformer.word_embedding = embeddings

    def get_output_embeddings(self):
        return self.lm_loss

    def new_cache(self, batch: int, capacity: int, span: int, static: bool = False) -> PositionedCache:
        config = self.config
        shape = (config.n_layer, batch, config.n_head, capacity, config.d_head)
        return PositionedCache(shape, self.offset_tables(span), self.device, self.dtype, static)

    def offset_tables(self, span: int) -> list[torch.Tensor]:
        """Each layer's table [H, D, 2S-1] of projected offsets between positions below the span S."""
        waves = sinusoids(span, self.config, self.device)
        return [block.rel_attn.table(waves) for block in self.transformer.layer]

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        content_context: torch.Tensor,
        query_positions: torch.Tensor,
        query_context: torch.Tensor,
        cache: PositionedCache | None = None,
    ) -> torch.Tensor:
        batch, count = tokens.shape
        starts = self.transformer.mask_emb.expand(*query_positions.shape, -1)  # [B, Q, E]
        x = torch.cat((self.transformer.word_embedding(tokens), starts), dim=1)  # [B, R, E]
        x = self.transformer.dropout(x)
        row_positions = torch.cat((positions, query_positions), dim=1)  # [B, R]
        context = torch.cat((content_context, query_context), dim=1)  # [B, R]
        # With nothing to see at all one scratch key stands in, and `empty` wipes out what was read from it.
        seen = max(count, 1) if cache is None else cache.seen(context)
        visible = torch.arange(seen, device=x.device) < context.clamp(min=1)[:, None, :, None]  # [B, 1, R, T]
        empty = (context == 0)[..., None]  # [B, R, 1]
        if cache is not None:
            cache.write_positions(positions)
            key_positions, tables = cache.positions[:, :seen], cache.tables
        else:
            key_positions = positions if count else positions.new_zeros(batch, 1)  # [B, T]
            tables = self.offset_tables(int(row_positions.max()) + 1)
        middle = tables[0].shape[-1] // 2  # where the offset is 0
        offsets = row_positions[:, :, None] - key_positions[:, None, :] + middle  # [B, R, T], 0..2S-2
        for index, (block, table) in enumerate(zip(self.transformer.layer, tables, strict=True)):
            keys, values = block.rel_attn.keys_values(x[:, :count])
            if cache is not None:
                cache.write(index, keys, values)
                keys, values = cache.read(index, seen)
            elif count == 0:
                keys = values = x.new_zeros(batch, self.config.n_head, 1, self.config.d_head)
            if index == len(tables) - 1:
                # Nobody reads the content stream behind its last keys and values.
                x, offsets, visible, empty = x[:, count:], offsets[:, count:], visible[:, :, count:], empty[:, count:]
            x = block.ff(block.rel_attn.attend(x, keys, values, table, offsets, visible, empty))
        return self.transformer.dropout(x)

    def output_layer(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lm_loss.weight, self.lm_loss.bias
