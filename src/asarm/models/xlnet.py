"""XLNet as an any-subset autoregressive model: released weights, attention evaluated for the rows asked for only.

Post-LN blocks with the relative attention of Transformer-XL (arXiv 1901.02860) and XLNet's two streams (arXiv
1906.08237). Row i scores key j by (q_i + r_w) . k_j + (q_i + r_r) . (sinusoid(pos_i - pos_j) W_r): the sinusoids of all
offsets are projected once, rows are scored against all offsets, and each row picks those of the keys it sees. There is
no segment term, for no segments are given.

Tokens come in rank order (see `asarm.models.rank_order`). Parameters have the names and shapes of `transformers`'
`XLNetLMHeadModel`: the same checkpoints serve both.

Shapes: B rows of the batch, C content tokens, Q queries, R = C + Q, T visible ranks, E width, H heads, D head width,
S span (positions are below it), V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import XLNetConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from asarm.models.backbone import AnyOrderModel, RowBlock, joined_contexts, row_blocks
from asarm.models.kv_cache import KeyValueCache
from asarm.models.ops import linear, recomputed
from asarm.utils.errors import InputError


class AnyOrderXLNetConfig(XLNetConfig):
    """XLNet's config and what it lacks.

    n_positions: longest text that is accepted, in tokens. The weights set no limit; XLNet was trained on 512.
    mask_token_id: the token that is never sampled; `asarm.models.load` takes it from the tokenizer.
    draft_head: hidden width of the draft head (`asarm.models.draft_head`); 0 for none.
    """

    n_positions: int = 1024
    mask_token_id: int | None = None
    draft_head: int = 0

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

    def read(self, queries, keys, values, table, offsets, unseen) -> torch.Tensor:
        """What queries [B, R, H, D] read of keys and values [B, H, T, D]: [B, R, H * D].

        table: [H, D, offsets]. offsets: [B, R, T], a key's place on the table's last axis. unseen: [1 or B, 1, R, T].
        """
        batch, rows, heads, width = queries.shape
        by_position = (queries + self.r_r_bias.to(queries.dtype)) * width**-0.5
        by_offset = torch.bmm(by_position.flatten(0, 1).transpose(0, 1), table)  # [H, B * R, offsets]
        picked = by_offset.gather(2, offsets.flatten(0, 1).expand(heads, -1, -1))  # [H, B * R, T]
        scores = picked.unflatten(1, (batch, rows)).transpose(0, 1).masked_fill(unseen, float("-inf"))
        by_content = (queries + self.r_w_bias.to(queries.dtype)).transpose(1, 2)  # [B, H, R, D]
        dropped = self.dropout.p if self.training else 0.0
        out = F.scaled_dot_product_attention(by_content, keys, values, attn_mask=scores, dropout_p=dropped)
        return out.transpose(1, 2).flatten(2)

    def attend(self, x, keys, values, table, windows, unseen, empty) -> torch.Tensor:
        """Rows x [B, R, E], cut into blocks, plus what they read of keys and values [B, H, T, D]; no layer norm yet.

        table: [H, D, 2S-1]. windows: the blocks' offsets. unseen: [1 or B, 1, C + Q, T] bool. empty [1 or B, R, 1] read
        nothing. Scores are as large as all else together: the backward pass makes them again.
        """
        queries = self.project(x, self.q)  # [B, R, H, D]
        random, out = self.training and self.dropout.p > 0, []
        parts = queries.split([window.rows.stop - window.rows.first for window in windows], dim=1)
        for part, (rows, low, high, offsets) in zip(parts, windows, strict=True):
            read = (keys[:, :, : rows.reach], values[:, :, : rows.reach], table[:, :, low:high], offsets)
            hidden = unseen[:, :, rows.first : rows.stop, : rows.reach]
            out.append(recomputed(self.read, part, *read, hidden, random=random))
        joined = torch.cat(out, dim=1).masked_fill(empty, 0.0)  # [B, R, H * D]
        return x + self.dropout(linear(joined, self.o.flatten(1)))


class Window(NamedTuple):
    """A block of rows with the offsets to the keys it reads: [B, rows, reach], counted from `low`, below `high`."""

    rows: RowBlock
    low: int
    high: int
    offsets: torch.Tensor


def windows_of(blocks: list[RowBlock], offsets: torch.Tensor, span: int) -> list[Window]:
    """The part of the offsets [B, C + Q, T] (0..2S-2) that each block reads."""
    parts = [offsets[:, block.first : block.stop, : block.reach] for block in blocks]
    if len(blocks) == 1:
        return [Window(blocks[0], 0, 2 * span - 1, parts[0])]
    ends = torch.stack([torch.stack(part.aminmax()) for part in parts]).tolist()
    return [
        Window(block, low, high + 1, part - low) for block, part, (low, high) in zip(blocks, parts, ends, strict=True)
    ]


class FeedForward(nn.Module):
    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.layer_1 = nn.Linear(config.d_model, config.d_inner)
        self.layer_2 = nn.Linear(config.d_inner, config.d_model)
        self.activation = ACT2FN[config.ff_activation]
        self.dropout = nn.Dropout(config.dropout)

    def contract(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(self.dropout(self.activation(hidden)), self.layer_2.weight, self.layer_2.bias)

    def forward(self, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """Rows x [B, R, E] before the layer norm in front of this layer."""
        hidden = recomputed(lambda x: linear(norm(x), self.layer_1.weight, self.layer_1.bias), x)
        out = recomputed(self.contract, hidden, random=self.training and self.dropout.p > 0)
        return self.layer_norm(norm(x) + self.dropout(out))


class Block(GradientCheckpointingLayer):
    def __init__(self, config: AnyOrderXLNetConfig):
        super().__init__()
        self.rel_attn = RelativeAttention(config)
        self.ff = FeedForward(config)

    def forward(self, x, count: int, windows: list[Window], table, unseen, empty, cache=None, index: int = 0):
        """Rows x [B, R, E], of which the first `count` are content -> the rows of `windows`, the last of the R.

        table: of this layer. unseen, empty: of all rows, see `RelativeAttention.attend`. cache: takes the content's
        keys and values as layer `index`.
        """
        keys, values = self.rel_attn.keys_values(x[:, :count])
        if cache is not None:
            cache.write(index, keys, values)
            keys, values = cache.read(index, unseen.shape[-1])
        elif count == 0:
            keys = values = x.new_zeros(len(x), len(table), 1, table.shape[1])
        first = windows[0].rows.first
        summed = self.rel_attn.attend(x[:, first:], keys, values, table, windows, unseen, empty[:, first:])
        return self.ff(summed, self.rel_attn.layer_norm)


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
        self.add_draft_head(config.d_model)
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
        return PositionedCache(shape, self.offset_tables(span), self.device, self.compute_dtype, static)

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
        context = joined_contexts(content_context, query_context)  # [1 or B, R]
        # With nothing to see at all one scratch key stands in, and `empty` wipes out what was read from it.
        seen = max(count, 1) if cache is None else cache.seen(context)
        unseen = torch.arange(seen, device=x.device) >= context.clamp(min=1)[:, None, :, None]  # [1 or B, 1, R, T]
        empty = (context == 0)[..., None]  # [1 or B, R, 1]
        if cache is not None:
            cache.write_positions(positions)
            key_positions, tables = cache.positions[:, :seen], cache.tables
        else:
            key_positions = positions if count else positions.new_zeros(batch, 1)  # [B, T]
            tables = self.offset_tables(int(row_positions.max()) + 1)
        middle = tables[0].shape[-1] // 2  # where the offset is 0
        offsets = row_positions[:, :, None] - key_positions[:, None, :] + middle  # [B, R, T], 0..2S-2
        every, queries = (windows_of(blocks, offsets, middle + 1) for blocks in row_blocks(context, count, seen))
        for index, (block, table) in enumerate(zip(self.transformer.layer, tables, strict=True)):
            # Nobody reads the content stream behind its last keys and values.
            rows = queries if index == len(tables) - 1 else every
            x = block(x, count, rows, table, unseen, empty, cache, index)
        return self.transformer.dropout(x)

    def output_layer(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lm_loss.weight, self.lm_loss.bias
