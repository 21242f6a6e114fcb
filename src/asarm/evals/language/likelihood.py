"""Log-likelihoods of continuations given their contexts, for multiple choice and perplexity.

The context is the prompt, visible as a whole; the continuation is a gap after it whose tokens are known. Its exact
joint log-likelihood takes one function evaluation. The context itself is not counted.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from asarm.models.compiled import DecodingModel
from asarm.objective.loss import log_prob_and_best
from asarm.tokenization.batch import InfillBatch, Role
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError

COLD = 0.0  # the temperature at which sampling takes the most probable token


class Pair(NamedTuple):
    """Token ids of a context and its continuation, and how many of the context's first were cut off."""

    context: list[int]
    continuation: list[int]
    cut: int = 0


class Score(NamedTuple):
    """Joint log-likelihood (nats) of a continuation, and whether greedy decoding would give it."""

    log_prob: float
    is_greedy: bool


def encode_pair(codec: TextCodec, context: str, continuation: str, longest: int) -> Pair:
    """Tokens of a context and a continuation that are together at most `longest`: the context is cut on the left.

    The continuation is what the tokens of both have after as many as the context has by itself; white space at the
    context's end belongs to it. These are the rules of lm-evaluation-harness.

    Raises InputError when one of them is empty or holds the mask token, or the continuation alone is too long.
    """
    bare = context.rstrip()
    prefix, whole = codec.encode(bare), codec.encode(context + continuation)
    if reserved := codec.reserved_in(whole):
        raise InputError(f"the text holds {reserved}, which stands for what is to be decoded: take it out")
    return cut_left(prefix, whole[len(prefix) :], longest)


def cut_left(context: list[int], continuation: list[int], longest: int) -> Pair:
    """The pair with as much of the context's end as fits into `longest` tokens.

    Raises InputError when context or continuation is empty, or no token of the context fits.
    """
    if not context or not continuation:
        raise InputError(f"the {'continuation' if context else 'context'} has no tokens of its own")
    room = longest - len(continuation)
    if room < 1:
        raise InputError(
            f"a continuation of {len(continuation)} tokens leaves no room for its context: the model takes at most "
            f"{longest} tokens"
        )
    return Pair(context[-room:], continuation, max(0, len(context) - room))


def score_pairs(model: DecodingModel, pairs: list[Pair], batch_size: int) -> list[Score]:
    """The score of each pair. Contexts must not be empty; batches are made of pairs of like length."""
    scores = dict(iterate_scores(model, pairs, batch_size))
    return [scores[index] for index in range(len(pairs))]


def iterate_scores(model: DecodingModel, pairs: list[Pair], batch_size: int) -> Iterator[tuple[int, Score]]:
    """The index of each pair and its score, longest contexts first (so that memory runs out at once or never)."""
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i].context), len(pairs[i].continuation)), reverse=True)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = pair_batch([pairs[index] for index in indices], model.device)
        log_probs, best = log_prob_and_best(model, *batch)
        totals, greedy = log_probs.double().sum(1), (best | ~batch.target).all(1)
        for index, total, is_greedy in zip(indices, totals.tolist(), greedy.tolist(), strict=True):
            yield index, Score(total, is_greedy)


def pair_batch(pairs: list[Pair], device: torch.device) -> InfillBatch:
    """The contexts are given, the continuations are targets."""
    return InfillBatch.from_parts(
        [(pair.context, pair.continuation) for pair in pairs], (Role.GIVEN, Role.TARGET), device
    )
