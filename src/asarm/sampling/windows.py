"""How many tokens a step drafts: policies, and the state of samplers that follow one."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from asarm.models.compiled import DecodingModel
from asarm.sampling.config import SamplerConfig
from asarm.sampling.decode_state import DecodeState
from asarm.sampling.result import Evaluations, TraceOption, one_evaluation
from asarm.tokenization.batch import InfillBatch


class WindowPolicy(Protocol):
    """How many tokens to draft. max_k: the longest window. k: drafts of the next window that is chosen.

    k may depend on decided tokens, costs and the outcomes of earlier verifications, not on drafts yet to be verified.
    """

    max_k: int
    k: int

    def update(self, verified: np.ndarray, accepted: np.ndarray) -> None:
        """Record a step: of the drafts up to a rejection, verified [B], the first accepted [B] were accepted, int64."""


class FixedWindow:
    """Always k drafts."""

    def __init__(self, k: int):
        self.max_k = self.k = k

    def update(self, verified: np.ndarray, accepted: np.ndarray) -> None:
        """No change."""


class WindowedDecoding(DecodeState):
    """A state whose steps have windows as a policy chooses them, and which shows the policy what became of them."""

    def __init__(
        self,
        model: DecodingModel,
        batch: InfillBatch,
        config: SamplerConfig,
        seeds: Sequence[int],
        trace: TraceOption,
        policy: WindowPolicy,
        allowed: torch.Tensor | None = None,
    ):
        longest = policy.max_k
        super().__init__(model, batch, config, seeds, trace, longest, self.lookahead(longest, config), allowed)
        self.policy = policy

    @staticmethod
    def lookahead(longest: int, config: SamplerConfig) -> int:
        """How many ranks, from the next one on, a step queries at most, by the drafts of the longest window."""
        return longest

    def look(self, evaluations: Evaluations = one_evaluation) -> list[tuple[np.ndarray, np.ndarray]]:
        """As in `DecodeState`."""
        steps = super().look(evaluations)
        for verified, accepted in steps:
            self.policy.update(verified, accepted)
        return steps
