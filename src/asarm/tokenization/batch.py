"""`InfillBatch`: padded token ids, with what is given and what is predicted."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import torch

PADDING = -1  # after the end of a text, in arrays of token ids that nothing else says the lengths of


class Role(Enum):
    """What a part of a sequence is to the model: known, or to be predicted. A part that it does not see has none."""

    GIVEN = "given"
    TARGET = "target"


class InfillBatch(NamedTuple):
    """B sequences of N tokens, padded at the end. `sample(model, *batch, config, seeds)`, `log_prob(model, *batch)`.

    tokens: [B, N] int64, 0 at padding.
    given, target: [B, N] bool, disjoint. A position that is neither is hidden from the model, as padding is.
    """

    tokens: torch.Tensor
    given: torch.Tensor
    target: torch.Tensor

    @classmethod
    def from_parts(
        cls,
        rows: Sequence[Sequence[Sequence[int]]],
        roles: Sequence[Role | None],
        device: torch.device | str | None = None,
    ) -> "InfillBatch":
        """Sequences that are made of the same parts, such as prefix, gap and suffix.

        rows: for each sequence the token ids of its parts, in order. roles: of each part; None hides it.
        """
        shape = len(rows), max(sum(map(len, parts)) for parts in rows)
        tokens = torch.zeros(shape, dtype=torch.long)
        given, target = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for row, parts in enumerate(rows):
            start = 0
            for ids, role in zip(parts, roles, strict=True):
                part = slice(start, start + len(ids))
                tokens[row, part] = torch.tensor(ids, dtype=torch.long)
                given[row, part] = role is Role.GIVEN
                target[row, part] = role is Role.TARGET
                start = part.stop
        return cls(tokens, given, target).to(device)

    def to(self, device: torch.device | str | None) -> "InfillBatch":
        """The batch on a device."""
        return InfillBatch(*(tensor.to(device) for tensor in self))

    def select(self, rows: Sequence[int] | slice) -> "InfillBatch":
        """Some of the sequences, by their indices."""
        return InfillBatch(*(tensor[rows] for tensor in self))

    def repeat(self, times: int) -> "InfillBatch":
        """A batch of one sequence as a batch of `times` equal ones."""
        return InfillBatch(*(tensor.expand(times, -1) for tensor in self))

    def masked(self, mask_token_id: int) -> "InfillBatch":
        """The batch with the mask token at its targets."""
        return self._replace(tokens=self.tokens.masked_fill(self.target, mask_token_id))
