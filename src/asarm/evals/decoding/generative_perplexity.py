"""Generative perplexity: how likely decoded text is under a left-to-right model; and how varied its tokens are."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from asarm.evals.hub import load_causal
from asarm.models.compiled import DecodingModel
from asarm.objective.loss import log_prob
from asarm.utils.errors import InputError

MAX_TOKENS = 960  # of the scoring model that are read, as in the paper


class TextScore(NamedTuple):
    """nll: mean negative log-likelihood, nats a token; its exponential is the generative perplexity. entropy: bits."""

    nll: float
    entropy: float


# Takes B decoded texts and their tokens [B, N] int64, and scores each.
Scorer = Callable[[Sequence[str], torch.Tensor], list[TextScore]]


def token_entropy(tokens: Sequence[int]) -> float:
    """Entropy in bits of the histogram of token ids: 0 for one token repeated, log2 n for n different ones."""
    shares = np.unique(np.asarray(tokens), return_counts=True)[1] / len(tokens)
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0.0


def self_scorer(model: DecodingModel) -> Scorer:
    """The AS-ARM itself: its exact joint NLL with nothing given, which is in left-to-right order; its own tokens."""

    def score(texts: Sequence[str], tokens: torch.Tensor) -> list[TextScore]:
        scores = log_prob(model, tokens, given=torch.zeros_like(tokens, dtype=torch.bool))  # [B, N]
        pairs = zip(scores.tolist(), tokens.tolist(), strict=True)
        return [TextScore(-sum(row) / len(row), token_entropy(ids)) for row, ids in pairs]

    return score


def causal_scorer(name: str, device: torch.device) -> Scorer:
    """A causal language model of the Hub or a folder, in float32. It tokenises the text again with its own tokenizer,
    and scores all of the first 960 tokens (fewer if it takes fewer) but the first, which it has no context for."""
    model, tokenizer = load_causal(name, "judge", device)
    limit = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS)

    @torch.inference_mode()
    def score_one(text: str) -> TextScore:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:limit]
        if len(ids) < 2:
            raise InputError(f"the judge {name} needs at least 2 tokens, and finds {len(ids)} in {text!r}")
        tokens = torch.tensor([ids], device=device)  # [1, n]
        logits = model(tokens).logits[0, :-1].float()  # [n - 1, V]
        return TextScore(F.cross_entropy(logits, tokens[0, 1:]).item(), token_entropy(ids))

    return lambda texts, tokens: [score_one(text) for text in texts]


def load_scorer(name: str, model: DecodingModel, device: torch.device) -> Scorer:
    """The scoring model: `self` is the AS-ARM that decoded, any other name a causal language model."""
    return self_scorer(model) if name == "self" else causal_scorer(name, device)
