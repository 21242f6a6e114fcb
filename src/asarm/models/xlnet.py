"""XLNet as an any-subset autoregressive model: released weights, attention computed only for the rows asked for.

Post-LN blocks with the relative attention of Transformer-XL (arXiv 1901.02860) and XLNet's two streams (arXiv
1906.08237). Row i scores key j by (q_i + r_w) . k_j + (q_i + r_r) . (sinusoid(pos_i - pos_j) W_r). The sinusoids of all
offsets are projected once; each row is scored against all offsets, and picks those of its keys. There are no segments.

Tokens come in rank order (see `asarm.models.rank_order`). Parameters have the names and shapes of `transformers`'
`XLNetLMHeadModel`: the same checkpoints serve both.

Shapes: B rows of the batch, C content tokens, Q queries, R = C + Q, T visible ranks, E width, H heads, D head width,
S span (positions are below it), V vocabulary.
"""

from os import PathLike
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import XLNetConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from asarm.models.backbone import AnyOrderModel, RowBlock, check_settings, joined, readable, visibility
from asarm.models.kv_cache import KeyValueCache
from asarm.models.ops import linear, may_look, normed_linear, packed_linear, recompute_in_backward
from asarm.utils.config import check, check_at_least, check_choices


@strict
class AnyOrderXLNetConfig(XLNetConfig):
    """XLNet's config, and settings that it lacks: see `AnyOrderModel`. Raises InputError for what is not implemented.

    The weights set no limit to n_positions; XLNet was trained on 512.
    """

    n_positions: int = 1024
    mask_token_id: int | None = None
    n_tokens: int | None = None
    gap_end_token_id: int | None = None
    draft_head: int = 0
    draft_recurrent: bool = False
    draft_vocabulary: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_settings(self, "d_model", "n_layer", "n_head", "d_inner")
        check_at_least(self, layer_norm_eps=0)
        check_choices("ff_activation", [self.ff_activation], ACT2FN)
        check(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        check(self.attn_type == "bi", f"attn_type={self.attn_type!r} is Transformer-XL's; XLNet models have 'bi'")
        check(not self.bi_data, "bi_data=True reads half of the batch backwards; set it to false in config.json")
        check(self.d_model % 2 == 0, f"d_model={self.d_model} is odd; sines and cosines need an even width")

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json, with the name of the class of `transformers` that can load the weights, too."""
        self.architectures = ["XLNetLMHeadModel"]
        super().save_pretrained(save_directory, push_to_hub, **kwargs)


def sinusoids(span: int, config: AnyOrderXLNetConfig, device: torch.device) -> torch.Tensor:
    """Sines, then cosines, of the offsets 1-S..S-1: [2S-1, E] float32."""
    offsets = torch.arange(1 - span, span, device=device, dtype=torch.float32)
    if config.clamp_len > 0:
        offsets = offsets.clamp(-config.clamp_len, config.clamp_len)
    exponents = torch.arange(0, config.d_model, 2, device=device, dtype=torch.float32) / config.d_model
    angles = offsets[:, None] / 10000**exponents  # [2S-1, E / 2]
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class PositionedCache(KeyValueCache):
    """A cache that also holds the position of each rank.

    tables: each layer's projected offsets [H, 2S-1, D], made once for the model and the span S of this cache.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int, int],
        tables: list[torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
        static: bool = False,
    ):
        super().__init__(shape, device, dtype, static)
        _, batch, _, capacity, _ = shape
        self.positions = torch.zeros(batch, capacity + 1, dtype=torch.long, device=device)
        self.tables = tables

    def write_positions(self, positions: torch.Tensor) -> None:
        """Store positions [B, C] of the next C ranks after each row's length, as `write` does keys and values."""
        self.positions.scatter_(1, self.begin(positions.shape[1]), positions)

    def row_tensors(self) -> list[torch.Tensor]:
        return [*super().row_tensors(), self.positions]

    def keep_rows(self, rows: torch.Tensor) -> None:
        super().keep_rows(rows)
        self.positions = self.positions[rows]


class KeyWindow(NamedTuple):
    """The keys that a block of rows reads, and where their offsets stand in a table [H, 2S-1, D] of all offsets.

    block: the rows, and how many ranks they reach.
    low, high: the block needs the entries low..high-1 of the table.
    entries: [B, rows, reach] int64, of those the one of each key, as counted from `low`.
    unseen: [1 or B, 1, rows, reach] bool, the keys that a row does not see.
    """

    block: RowBlock
    low: int
    high: int
    entries: torch.Tensor
    unseen: torch.Tensor


def key_windows(blocks: list[RowBlock], index: torch.Tensor, unseen: torch.Tensor, span: int) -> list[KeyWindow]:
    """The window of each block: the part of the table that it needs, but all of it where a single block would make the
    host wait for values.

    index: [B, C + Q, T] int64, in 0..2S-2, and unseen: [1 or B, 1, C + Q, T], of all rows.
    """
    rows = [(slice(block.start, block.stop), slice(block.reach)) for block in blocks]
    parts = [(index[:, some, keys], unseen[:, :, some, keys]) for some, keys in rows]
    if len(blocks) == 1 and not (may_look(index) and parts[0][0].numel()):
        return [KeyWindow(blocks[0], 0, 2 * span - 1, *parts[0])]
    ends = torch.stack([torch.stack(part.aminmax()) for part, _ in parts]).tolist()
    return [
        KeyWindow(block, low, high + 1, part - low, hidden)
        for block, (part, hidden), (low, high) in zip(blocks, parts, ends, strict=True)
    ]


class RelativeAttention(nn.Module):
    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__()
        heads = (config.n_head, config.d_model // config.n_head)  # H, D
        shape = (config.d_model, *heads)
        self.q = nn.Parameter(torch.empty(shape))
        self.k = nn.Parameter(torch.empty(shape))
        self.v = nn.Parameter(torch.empty(shape))
        self.o = nn.Parameter(torch.empty(shape))
        self.r = nn.Parameter(torch.empty(shape))
        self.r_r_bias = nn.Parameter(torch.empty(heads))
        self.r_w_bias = nn.Parameter(torch.empty(heads))
        # The weights of the segment term, kept so that checkpoints can be saved again; no gradient reaches them.
        self.register_buffer("r_s_bias", torch.empty(heads))
        self.register_buffer("seg_embed", torch.empty(2, *heads))
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def project(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return packed_linear(x, weight.flatten(1).t()).unflatten(-1, weight.shape[1:])  # [..., E] -> [..., H, D]

    def keys_values(self, content: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the content stream: [B, C, E] -> 2 x [B, H, C, D]."""
        return self.project(content, self.k).transpose(1, 2), self.project(content, self.v).transpose(1, 2)

    def offset_table(self, sinusoids: torch.Tensor) -> torch.Tensor:
        """Projected sinusoids of all offsets: [2S-1, E] -> [H, 2S-1, D]."""
        waves = self.dropout(sinusoids).to(self.r.dtype)
        return (waves @ self.r.flatten(1)).unflatten(1, self.r.shape[1:]).transpose(0, 1).contiguous()

    def position_scores(self, queries: torch.Tensor, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The term (q_i + r_r) . (sinusoid(pos_i - pos_j) W_r) of the scores: [B, H, R, T].

        queries: [B, R, H, D]. table: [H, offsets, D]. index: [B, R, T], of a key's offset in the table.
        """
        batch, rows, heads, width = queries.shape
        scaled = (queries + self.r_r_bias.to(queries.dtype)) * width**-0.5
        by_offset = torch.bmm(scaled.flatten(0, 1).transpose(0, 1), table.transpose(1, 2))  # [H, B * R, offsets]
        by_key = by_offset.gather(2, index.flatten(0, 1).expand(heads, -1, -1))  # [H, B * R, T]
        return by_key.unflatten(1, (batch, rows)).transpose(0, 1)

    def read(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, window: KeyWindow
    ) -> torch.Tensor:
        """What the rows of a window read: queries [B, rows, H, D] -> [B, rows, H * D]. The rest is as in `forward`."""
        reach = window.block.reach
        position_scores = self.position_scores(queries, table[:, window.low : window.high], window.entries)
        read = F.scaled_dot_product_attention(
            (queries + self.r_w_bias.to(queries.dtype)).transpose(1, 2),  # [B, H, rows, D]
            keys[:, :, :reach],
            values[:, :, :reach],
            attn_mask=position_scores.masked_fill(window.unseen, float("-inf")),
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return read.transpose(1, 2).flatten(2)

    def forward(
        self,
        x: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        table: torch.Tensor,
        windows: list[KeyWindow],
        empty: torch.Tensor | None,
    ) -> torch.Tensor:
        """Rows x [B, R, E] plus what they read of keys and values [B, H, T, D]: [B, R, E], before the layer norm.

        table: [H, 2S-1, D]. windows: those of the R rows. empty: as in `Visibility`.
        """
        queries = self.project(x, self.q)  # [B, R, H, D]
        parts = queries.split([window.block.stop - window.block.start for window in windows], dim=1)
        # Scores take as much memory as all else together: they are not kept.
        random = self.training and self.dropout.p > 0
        read = [
            recompute_in_backward(self.read, part, keys, values, table, window, random=random)
            for part, window in zip(parts, windows, strict=True)
        ]
        return x + self.dropout(packed_linear(joined(read, empty), self.o.flatten(1)))


class FeedForward(nn.Module):
    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.layer_1 = nn.Linear(config.d_model, config.d_inner)
        self.layer_2 = nn.Linear(config.d_inner, config.d_model)
        self.activation = ACT2FN[config.ff_activation]
        self.dropout = nn.Dropout(config.dropout)

    def contract(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(self.layer_2, self.dropout(self.activation(hidden)))

    def forward(self, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """Rows [B, R, E] -> [B, R, E]. norm: the layer norm that x has yet to go through."""
        hidden = normed_linear(norm, x, self.layer_1.weight, self.layer_1.bias)
        out = recompute_in_backward(self.contract, hidden, random=self.training and self.dropout.p > 0)
        return self.layer_norm(norm(x) + self.dropout(out))


class Block(GradientCheckpointingLayer):
    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__()
        self.rel_attn = RelativeAttention(config)
        self.ff = FeedForward(config)

    def forward(
        self,
        x: torch.Tensor,
        count: int,
        windows: list[KeyWindow],
        table: torch.Tensor,
        empty: torch.Tensor | None,
        ranks: int,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> torch.Tensor:
        """Rows x [B, C + Q, E], `count` of them content -> the rows of `windows`, which are all or the last of them.

        table: of this layer. empty: of all rows, as in `RelativeAttention`. ranks: T. cache: stores the content's keys
        and values of `layer`.
        """
        keys, values = readable(*self.rel_attn.keys_values(x[:, :count]), cache, layer, ranks)
        start = windows[0].block.start
        x = self.rel_attn(x[:, start:], keys, values, table, windows, empty)
        return self.ff(x, self.rel_attn.layer_norm)


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

    config: AnyOrderXLNetConfig
    config_class = AnyOrderXLNetConfig
    base_model_prefix = "transformer"
    _tied_weights_keys = {"lm_loss.weight": "transformer.word_embedding.weight"}  # noqa: RUF012 (transformers' name)

    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__(config)
        self.transformer = Transformer(config)
        self.lm_loss = nn.Linear(config.d_model, config.vocab_size)
        self.add_draft_head(config.d_model)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """XLNet's initialisation: all is normal except layer norms and the biases of linear layers."""
        super()._init_weights(module)
        if isinstance(module, (RelativeAttention, Transformer)):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                nn.init.normal_(tensor, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.word_embedding

    def set_input_embeddings(self, embeddings: nn.Module) -> None:
        self.transformer.word_embedding = cast(nn.Embedding, embeddings)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_loss

    def new_cache(self, batch: int, capacity: int, span: int, static: bool = False) -> PositionedCache:
        config = self.config
        shape = (config.n_layer, batch, config.n_head, capacity, config.d_model // config.n_head)
        return PositionedCache(shape, self.offset_tables(span), self.device, self.compute_dtype, static)

    def offset_tables(self, span: int) -> list[torch.Tensor]:
        """Each layer's table [H, 2S-1, D] of projected offsets between positions below the span S."""
        waves = sinusoids(span, self.config, self.device)
        return [cast(Block, block).rel_attn.offset_table(waves) for block in self.transformer.layer]

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        content_context: torch.Tensor,
        query_positions: torch.Tensor,
        query_context: torch.Tensor,
        cache: PositionedCache | None = None,
        beside: torch.Tensor | None = None,
    ) -> torch.Tensor:
        count = tokens.shape[1]
        queries = self.transformer.mask_emb.expand(*query_positions.shape, -1)  # [B, Q, E]
        x = self.transformer.dropout(torch.cat((self.transformer.word_embedding(tokens), queries), dim=1))  # [B, R, E]
        visible = visibility(count, content_context, query_context, cache, beside)
        ranks = visible.unseen.shape[-1]
        row_positions = torch.cat((positions, query_positions), dim=1)  # [B, R]
        if cache is not None:
            cache.write_positions(positions)
            key_positions, tables = cache.positions[:, :ranks], cache.tables  # [B, T]
        else:  # a scratch key stands in where there is no content
            key_positions = positions if positions.shape[1] else positions.new_zeros(len(positions), 1)
            tables = self.offset_tables(int(row_positions.max()) + 1)
        zero = tables[0].shape[1] // 2  # the index of offset 0
        index = row_positions[:, :, None] - key_positions[:, None, :] + zero  # [B, R, T], 0..2S-2
        every_row, query_rows = (key_windows(blocks, index, visible.unseen, zero + 1) for blocks in visible[2:])
        for layer, (block, table) in enumerate(zip(self.transformer.layer, tables, strict=True)):
            # The content stream ends with the keys and values of the last layer.
            windows = query_rows if layer == len(tables) - 1 else every_row
            x = block(x, count, windows, table, visible.empty, ranks, cache, layer)
        return self.transformer.dropout(x)

    def output_layer(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lm_loss.weight, self.lm_loss.bias
