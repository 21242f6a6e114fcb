"""Judges of decoded text: how likely it is under a left-to-right law, and how varied its tokens are."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from asarm.evals.hub import load_causal
from asarm.objective.loss import log_prob
from asarm.utils.errors import InputError

CUT = 960  # tokens of the judge that are read, as in the paper


class Judgement(NamedTuple):
    """nll: mean negative log-likelihood, nats a token; its exponential is the generative perplexity. entropy: bits."""

    nll: float
    entropy: float


# A judge takes the B decoded texts and their tokens [B, N] int64, and judges each.
Judge = Callable[[Sequence[str], torch.Tensor], list[Judgement]]


def token_entropy(tokens: Sequence[int]) -> float:
    """Entropy in bits of the histogram of token ids: 0 for one token repeated, log2 n for n different ones."""
    shares = np.unique(np.asarray(tokens), return_counts=True)[1] / len(tokens)
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0.0


def self_judge(model) -> Judge:
    """The AS-ARM itself: its exact joint NLL with nothing given, which is in left-to-right order; its own tokens."""

    def judge(texts: Sequence[str], tokens: torch.Tensor) -> list[Judgement]:
        scores = log_prob(model, tokens, given=torch.zeros_like(tokens, dtype=torch.bool))  # [B, N]
        pairs = zip(scores.tolist(), tokens.tolist(), strict=True)
        return [Judgement(-sum(row) / len(row), token_entropy(ids)) for row, ids in pairs]

    return judge


def causal_judge(name: str, device: torch.device) -> Judge:
    """A causal language model of the Hub or a folder, in float32. It reads the text anew with its own tokenizer, and
    scores all of the first 960 tokens (fewer if it takes fewer) but the first, which it has no context for."""
    model, tokenizer = load_causal(name, "judge", device)
    cut = min(CUT, getattr(model.config, "max_position_embeddings", None) or CUT)

    @torch.inference_mode()
    def judge_one(text: str) -> Judgement:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:cut]
        if len(ids) < 2:
            raise InputError(f"the judge {name} needs at least 2 tokens, and finds {len(ids)} in {text!r}")
        tokens = torch.tensor([ids], device=device)  # [1, n]
        logits = model(tokens).logits[0, :-1].float()  # [n - 1, V]
        return Judgement(F.cross_entropy(logits, tokens[0, 1:]).item(), token_entropy(ids))

    return lambda texts, tokens: [judge_one(text) for text in texts]


def load_judge(name: str, model, device: torch.device) -> Judge:
    """The judge called `self` (the AS-ARM that decoded), or a causal language model by its name."""
    return self_judge(model) if name == "self" else causal_judge(name, device)
