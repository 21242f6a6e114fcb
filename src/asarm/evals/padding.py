"""Texts of different lengths as one batch."""

from collections.abc import Sequence

import torch

PADDING = -1


def padded_parts(rows: Sequence[Sequence[list[int]]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts, each the token ids of its parts: tokens [B, N] int64, and part [B, N] int64, which says of each place to
    which part, counted from 0, it belongs; PADDING, with token 0, is behind the last."""
    width = max(sum(map(len, row)) for row in rows)
    tokens, part = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), PADDING)
    for index, row in enumerate(rows):
        start = 0
        for number, ids in enumerate(row):
            tokens[index, start : start + len(ids)] = torch.tensor(ids, dtype=torch.long)
            part[index, start : start + len(ids)] = number
            start += len(ids)
    return tokens.to(device), part.to(device)
