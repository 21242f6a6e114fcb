"""`DraftHead`: a small head that conditions a draft on the token to its left.

The drafts of a window are made in one call of the network, so none of them depends on those before it. Once the token
to the left is drawn, this head shifts the query's final state by it: two small matrices instead of another call of the
network (compare Domino, arXiv 2605.29707). Drafts may have any distribution, so the head changes the speed of decoding
and never what is sampled.
"""

import torch
import torch.nn.functional as F
from torch import nn

from asarm.models.ops import small_batch_linear


class DraftHead(nn.Module):
    """A two-layer perceptron with a residual connection. width: of the model. hidden: of the head."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc = nn.Linear(2 * width, hidden)
        self.proj = nn.Linear(hidden, width)

    def forward(self, states: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Final states [..., E] of queries, and embeddings [..., E] of the tokens to their left -> states [..., E]."""
        hidden = small_batch_linear(torch.cat((states, left), dim=-1), self.fc.weight, self.fc.bias)
        return states + small_batch_linear(F.gelu(hidden, approximate="tanh"), self.proj.weight, self.proj.bias)
