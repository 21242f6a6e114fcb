"""Token ids of texts with gaps as a padded batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class InfillBatch(NamedTuple):
    """A text with gaps. tokens: [N] int64, the mask token at the targets. given, target: [N] bool, one of them true."""

    tokens: torch.Tensor
    given: torch.Tensor
    target: torch.Tensor


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
