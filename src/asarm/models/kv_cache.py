"""Keys and values in rank order.

A content representation never changes once its rank is reached, so the cache is exact and append-only: accepting
tokens leaves their entries in place, rejecting them shortens a length.
"""

import torch


class KeyValueCache:
    """Ragged key/value cache of one batch.

    Row b holds its first `lengths[b]` ranks; what lies behind is scratch and never seen, because every reader says
    how many ranks it sees. static: readers get all slots, whatever they see, so that no shape depends on the data.
    """

    def __init__(self, layers: int, batch: int, heads: int, capacity: int, head_dim: int, device, dtype, static=False):
        # One slot more than the capacity takes the writes of padded rows that would run past the end.
        shape = (batch, heads, capacity + 1, head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.capacity, self.static = capacity, static

    def seen(self, context: torch.Tensor) -> int:
        """How many slots to read (at least 1) for rows that see `context` ranks each."""
        return self.capacity if self.static else max(int(context.max()), 1)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values [B, H, C, D] of the next C ranks behind each row's length (which stays as it is)."""
        batch, _, count, _ = keys.shape
        slots = self.lengths[:, None] + torch.arange(count, device=keys.device)  # [B, C]
        slots = slots.clamp(max=self.capacity)
        rows = torch.arange(batch, device=keys.device)[:, None]
        self.keys[layer][rows, :, slots] = keys.transpose(1, 2)  # [B, C, H, D]
        self.values[layer][rows, :, slots] = values.transpose(1, 2)

    def read(self, layer: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the first `count` slots: keys and values [B, H, count, D]."""
        return self.keys[layer][:, :, :count], self.values[layer][:, :, :count]

    def set_lengths(self, lengths: torch.Tensor) -> None:
        """Commit or roll back: from now on row b holds its first `lengths[b]` ranks. lengths: [B] int64."""
        self.lengths = lengths.clone()

    def row_tensors(self) -> list[torch.Tensor]:
        """All tensors whose first axis is the batch, but the lengths."""
        return [*self.keys, *self.values]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop all rows of the batch but `rows` [B'] (indices), in that order."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.lengths = self.lengths[rows]
