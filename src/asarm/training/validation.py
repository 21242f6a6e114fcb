"""Held-out NLL of masked tokens: the model's exact joint one, and those of a unigram and a bigram table."""

import numpy as np
import torch

from asarm.objective.loss import log_prob
from asarm.objective.masking import random_targets


def masked_nll(model, blocks: np.ndarray, rate: float, seed: int, batch: int = 8) -> np.ndarray:
    """Negative joint log-density of `rate` of the tokens of each block, given the rest: [n, N] -> [n], nats a token."""
    tokens = torch.from_numpy(blocks).long()
    target = random_targets(*tokens.shape, rate, torch.Generator().manual_seed(seed))
    parts = zip(tokens.split(batch), target.split(batch), strict=True)
    scores = [log_prob(model, part.to(model.device), ~masked.to(model.device)).sum(1) for part, masked in parts]
    return (-torch.cat(scores).cpu() / target.sum(1)).numpy()


def ngram_nll(
    train_blocks: np.ndarray, blocks: np.ndarray, rate: float, vocab_size: int, seed: int
) -> dict[str, float]:
    """The same tokens, each given the token to its left (known or true), under counted tables.

    unigram: add-one counts. bigram: absolute discounting (0.75) that backs off to the unigram.
    """
    unigram = np.bincount(train_blocks.ravel(), minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs = train_blocks[:, :-1].astype(np.int64) * vocab_size + train_blocks[:, 1:]
    keys, counts = np.unique(pairs, return_counts=True)
    lefts = keys // vocab_size
    left_total = np.bincount(lefts, weights=counts, minlength=vocab_size)
    left_types = np.bincount(lefts, minlength=vocab_size)

    target = random_targets(*blocks.shape, rate, torch.Generator().manual_seed(seed)).numpy()
    log_unigram = np.log(unigram[blocks])
    left, right = blocks[:, :-1].astype(np.int64), blocks[:, 1:]
    place = np.searchsorted(keys, left * vocab_size + right).clip(max=len(keys) - 1)
    count = np.where(keys[place] == left * vocab_size + right, counts[place], 0)
    total = np.maximum(left_total[left], 1)
    back_off = np.where(left_total[left] > 0, 0.75 * left_types[left] / total, 1.0)
    log_bigram = log_unigram.copy()
    log_bigram[:, 1:] = np.log(np.maximum(count - 0.75, 0) / total + back_off * unigram[right])
    return {"unigram": -log_unigram[target].mean().item(), "bigram": -log_bigram[target].mean().item()}
