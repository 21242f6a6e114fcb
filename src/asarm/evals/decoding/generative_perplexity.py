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

MAX_TOKENS = 960  # of the scoring model that are scored, as in the paper


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


def causal_scorer(
    name: str, device: torch.device, add_start_token: bool = False, entropy_of_whole: bool = False
) -> Scorer:
    """A causal language model of the Hub or a folder, in float32. It tokenises the text again with its own tokenizer,
    and scores the first 960 tokens (fewer if it takes fewer).

    add_start_token: it reads its bos token first, and so scores all of them, as the perplexity of `evaluate` does;
    else all but the first, which it has no context for. entropy_of_whole: the entropy is that of all tokens of the
    text; else of the first 960.

    Raises InputError when the model cannot be loaded, or has no bos token to start with.
    """
    model, tokenizer = load_causal(name, "judge", device)
    start = [tokenizer.bos_token_id] if add_start_token else []
    if None in start:
        raise InputError(f"the tokenizer of {name} has no bos token to start with: use --add_start_token False")
    positions = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS + len(start)
    limit = min(MAX_TOKENS, positions - len(start))

    @torch.inference_mode()
    def score_one(text: str) -> TextScore:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        read = start + ids[:limit]
        if len(read) < 2:
            raise InputError(f"the judge {name} needs at least 2 tokens, and finds {len(read)} in {text!r}")
        tokens = torch.tensor([read], device=device)  # [1, n]
        logits = model(tokens).logits[0, :-1].float()  # [n - 1, V]
        nll = F.cross_entropy(logits, tokens[0, 1:]).item()
        return TextScore(nll, token_entropy(ids if entropy_of_whole else ids[:limit]))

    return lambda texts, tokens: [score_one(text) for text in texts]
