"""`KeyValueCache`: keys and values in rank order, for rows of different lengths; `TokenCache` keeps the tokens, too.

The representation of a known token never changes once its rank is reached, so the cache is exact and append-only:
accepted tokens stay where they are, and rejecting tokens only shortens a length.
"""

from typing import Any

import torch

SHARED_TOKENS = 256  # prompts are read once only if that saves as many tokens: it takes a call of its own


class KeyValueCache:
    """Keys and values of one batch. Row b holds its first `lengths[b]` ranks.

    Slots from there on are scratch, and never seen, because every reader says how many ranks it sees.

    shape: layers, batch, heads, capacity and head width.
    static: readers get all slots, whatever they see, so that no shape depends on the data.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int, int],
        device: torch.device,
        dtype: torch.dtype,
        static: bool = False,
    ):
        layers, batch, heads, capacity, head_width = shape
        # One slot beyond the capacity takes the writes of padded rows that would run past the end.
        slots = (batch, heads, capacity + 1, head_width)
        self.keys = [torch.zeros(slots, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.zeros(slots, device=device, dtype=dtype) for _ in range(layers)]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.slots = torch.zeros(batch, 0, dtype=torch.long, device=device)  # where the present call writes
        self.first_slot: int | None = None  # of them, where they are one run that the host knows
        self.capacity, self.static = capacity, static
        self.rotary = torch.empty(0)  # [S, 2 * D], a table of models that turn keys, see `ops.rotary_at`

    def visible_slots(self, context: torch.Tensor) -> int:
        """How many slots to read (at least 1) for rows that see `context` ranks each."""
        return self.capacity if self.static else max(int(context.max()), 1)

    def begin(self, count: int) -> torch.Tensor:
        """The slots [B, C] of the next C ranks after each row's length, which all layers of a call will write."""
        self.slots = (self.lengths[:, None] + torch.arange(count, device=self.lengths.device)).clamp(max=self.capacity)
        self.first_slot = None
        if len(self.slots) == 1 and not self.static and self.slots.device.type == "cpu":
            first = int(self.lengths)
            self.first_slot = first if first + count <= self.capacity + 1 else None
        return self.slots

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values [B, H, C, D] in the slots of this call, see `begin`. The lengths do not change."""
        if self.first_slot is not None:
            slots = slice(self.first_slot, self.first_slot + keys.shape[2])
            self.keys[layer][:, :, slots] = keys
            self.values[layer][:, :, slots] = values
            return
        if len(keys) == 1:
            self.keys[layer].index_copy_(2, self.slots[0], keys)
            self.values[layer].index_copy_(2, self.slots[0], values)
            return
        rows = torch.arange(len(keys), device=keys.device)[:, None]
        self.keys[layer][rows, :, self.slots] = keys.transpose(1, 2)  # [B, C, H, D]
        self.values[layer][rows, :, self.slots] = values.transpose(1, 2)

    def read(self, layer: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the first `count` slots: keys and values [B, H, count, D]."""
        return self.keys[layer][:, :, :count], self.values[layer][:, :, :count]

    def set_lengths(self, lengths: torch.Tensor) -> None:
        """Commit or roll back: from now on row b holds its first `lengths[b]` ranks. lengths: [B] int64."""
        self.lengths.copy_(lengths)

    def row_tensors(self) -> list[torch.Tensor]:
        """All tensors whose first axis is the batch, except the lengths."""
        return [*self.keys, *self.values]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop all rows of the batch except `rows` [B'] (indices), in that order."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.lengths = self.lengths[rows]


class TokenCache(KeyValueCache):
    """A cache that also holds the token and the position of each rank, so that queries find the token to their left."""

    def __init__(
        self,
        shape: tuple[int, int, int, int, int],
        device: torch.device,
        dtype: torch.dtype,
        static: bool = False,
    ):
        super().__init__(shape, device, dtype, static)
        _, batch, _, capacity, _ = shape
        self.tokens = torch.zeros(batch, capacity + 1, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.tokens)

    def write_tokens(self, tokens: torch.Tensor, positions: torch.Tensor) -> None:
        """Store tokens and positions [B, C] in the slots of this call, as `write` does keys."""
        self.tokens.scatter_(1, self.slots, tokens)
        self.positions.scatter_(1, self.slots, positions)

    def row_tensors(self) -> list[torch.Tensor]:
        return [*super().row_tensors(), self.tokens, self.positions]

    def keep_rows(self, rows: torch.Tensor) -> None:
        super().keep_rows(rows)
        self.tokens, self.positions = self.tokens[rows], self.positions[rows]


def read_equal_prompts_once(
    model: Any,
    cache: KeyValueCache,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    prompt_length: torch.Tensor,
    span: int,
) -> bool:
    """Fill a new cache with the prompts of its rows, each different one read once, if that saves much: whether it does.

    tokens, positions: [B, P] int64 in rank order, the first prompt_length [B] int64 ranks of which are the prompt.
    span: as in `AnyOrderModel.new_cache`.
    """
    longest = tokens.shape[1]
    if longest * (len(tokens) - 1) < SHARED_TOKENS:
        return False
    ranks = torch.arange(longest, device=tokens.device)
    absent = ranks >= prompt_length[:, None]  # [B, P]
    parts = (tokens.masked_fill(absent, -1), positions.masked_fill(absent, -1))
    _, owner = torch.cat(parts, dim=1).unique(dim=0, return_inverse=True)  # [B], which prompt each row has
    count = int(owner.max()) + 1
    if longest * (len(owner) - count) < SHARED_TOKENS:
        return False
    first = owner.new_full((count,), len(owner)).scatter_reduce(0, owner, torch.arange(len(owner)).to(owner), "amin")
    length = prompt_length[first, None]  # [U, 1]
    read = model.new_cache(count, cache.capacity, span)
    model.hidden(
        tokens[first],
        positions[first],
        length.expand(-1, longest),  # the prompt sees all of itself
        positions[first, :1],  # a query, as there must be one
        length,
        read,
    )
    for target, source in zip(cache.row_tensors(), read.row_tensors(), strict=True):
        target.copy_(source[owner])
    cache.set_lengths(prompt_length)
    return True
