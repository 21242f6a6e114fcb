"""Rank order: which position is decoded at which rank, and how many ranks each row of the network sees.

The prompt has ranks 0..m-1, the targets m..n-1, both in ascending position: the binary-lattice order (MAC,
arXiv 2205.13554), of which there are 2^N instead of N!. On request the targets have any other order.
"""

from dataclasses import dataclass

import torch


@dataclass
class RankOrder:
    """The order of each sequence of a batch.

    order: [B, N] int64, the position decoded at each rank; ranks from `length` on list the absent positions.
    prompt_length: [B] int64, how many ranks are visible from the start.
    length: [B] int64, prompt and targets together.
    """

    order: torch.Tensor
    prompt_length: torch.Tensor
    length: torch.Tensor

    def content_context(self) -> torch.Tensor:
        """How many ranks the content stream sees at each rank: the prompt, and all ranks up to its own. [B, N] int64"""
        ranks = torch.arange(self.order.shape[1], device=self.order.device)
        return torch.maximum(ranks + 1, self.prompt_length[:, None])


def rank_order(given: torch.Tensor, target: torch.Tensor, turn: torch.Tensor | None = None) -> RankOrder:
    """The order of a batch: the given positions, then the targets, then all others, each in ascending position.

    given, target: [B, N] bool, disjoint. Positions that are neither (padding, or tokens left out of a conditional) come
    last and do not count in `length`. turn: [B, N] int64, each row a permutation of 0..N-1; targets are in ascending
    turn instead. Raises ValueError if a position is both, or turn is something else.
    """
    if (given & target).any():
        raise ValueError("a position cannot be both given and a target")
    n = given.shape[1]
    group = torch.full_like(given, 2, dtype=torch.long).masked_fill(target, 1).masked_fill(given, 0)
    within = torch.arange(n, device=given.device).expand(group.shape)
    if turn is not None:
        if turn.shape != given.shape or not torch.equal(turn.sort(1).values, within):
            raise ValueError(f"turn must have a permutation of 0..{n - 1} in each of {len(given)} rows")
        within = torch.where(target, turn, within)
    order = (group * n + within).argsort(dim=1)  # [B, N]
    prompt_length = given.sum(1)
    return RankOrder(order, prompt_length, prompt_length + target.sum(1))


def left_neighbours(
    tokens: torch.Tensor, positions: torch.Tensor, query_positions: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """The token to the left of each query [B, Q] int64, or -1 where it is not among those that the query sees.

    tokens, positions: [B, T], by rank. query_positions: [B, Q]. seen: [1 or B, Q, T] bool.
    """
    is_left = (positions[:, None] + 1 == query_positions[..., None]) & seen  # [B, Q, T]
    rank = is_left.byte().argmax(-1)  # [B, Q]
    return torch.where(is_left.any(-1), tokens.gather(1, rank), -1)
