"""A light head that tells a drafting query the token to the left of its place, which the network did not show it.

Drafts for a window are made in one call, so each is blind to those before it. Once the token to the left is drawn, this
head moves the query's final state by it: two small matrices instead of another call of the network (compare Domino,
arXiv 2605.29707). Drafts may have any law, so the head touches the speed of decoding and never its law.
"""

import torch
import torch.nn.functional as F
from torch import nn

from asarm.models.ops import linear


class DraftHead(nn.Module):
    """width: of the model. hidden: of the head."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc = nn.Linear(2 * width, hidden)
        self.proj = nn.Linear(hidden, width)

    def forward(self, states: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Final states [..., E] of queries, and embeddings [..., E] of the tokens to their left -> states [..., E]."""
        hidden = linear(torch.cat((states, left), dim=-1), self.fc.weight, self.fc.bias)
        return states + linear(F.gelu(hidden, approximate="tanh"), self.proj.weight, self.proj.bias)
