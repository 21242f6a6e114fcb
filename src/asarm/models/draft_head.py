"""`DraftHead`: a small head that conditions a draft on the token to its left.

The drafts of a window are made in one call of the network, so none of them depends on those before it. Once the token
to the left is drawn, this head shifts the query's final state by it: two small matrices instead of another call of the
network (compare Domino, arXiv 2605.29707). A recurrent head needs no query of its own: it makes the state from the
token to the left and the state that this was drawn from, its own of the draft before or the verifying query's (compare
Hydra, arXiv 2402.05109). Drafts may have any distribution, so the head changes the speed of decoding and never what is
sampled.
"""

import torch
import torch.nn.functional as F
from torch import nn

from asarm.models.ops import linear


class DraftHead(nn.Module):
    """A two-layer perceptron with residual connections. width: of the model. hidden: of the head."""

    def __init__(self, width: int, hidden: int, recurrent: bool):
        super().__init__()
        self.recurrent = recurrent
        self.fc = nn.Linear(2 * width, hidden)
        self.proj = nn.Linear(hidden, width)
        if recurrent:
            self.kept = nn.Parameter(torch.zeros(2, width))  # shares of the two inputs in the result

    def forward(self, states: torch.Tensor, left: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """States [..., E] for positions, given embeddings `left` [..., E] of the tokens to their left.

        states: [..., E], final ones of their drafting queries; recurrent heads do not read them, but
        previous: [..., E], the states that the tokens to the left were drawn from.
        """
        if not self.recurrent:
            return states + self.perceptron(torch.cat((states, left), dim=-1))
        inputs = torch.rms_norm(torch.stack((left, previous), dim=-2), left.shape[-1:])  # the two differ in scale
        return self.perceptron(inputs.flatten(-2)) + (self.kept * inputs).sum(-2)

    def perceptron(self, inputs: torch.Tensor) -> torch.Tensor:
        """Two inputs, side by side [..., 2 * E] -> [..., E]."""
        hidden = linear(self.fc, inputs)
        return linear(self.proj, F.gelu(hidden, approximate="tanh"))
