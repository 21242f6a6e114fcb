"""Validation on held-out sequences: exact joint NLL of masked tokens, decoding (cost, quality), n-gram baselines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch

from asarm.data.packed import evenly
from asarm.data.unpacked import Texts
from asarm.models.backbone import AnyOrderModel
from asarm.objective.loss import log_prob
from asarm.objective.masking import random_targets
from asarm.objective.text_gaps import TextGaps
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import PADDING, InfillBatch
from asarm.tokenization.codec import TextCodec

RATES = (0.15, 0.5, 0.95)  # masking rates
DECODED_RATE = 0.95
BASELINE_BLOCKS = 20_000


class TextScore(Protocol):
    """nll: mean negative log-likelihood under the scoring model, nats a token. entropy: of its tokens, bits."""

    @property
    def nll(self) -> float: ...
    @property
    def entropy(self) -> float: ...


# Takes the model in training, B decoded texts and their tokens [B, N] int64, and scores each text.
TextScorer = Callable[[AnyOrderModel, Sequence[str], torch.Tensor], Sequence[TextScore]]


def validate(
    model: AnyOrderModel,
    codec: TextCodec,
    blocks: np.ndarray,
    decodings: int,
    scorer: TextScorer | None = None,
    gaps: TextGaps | None = None,
) -> dict[str, float]:
    """Exact joint NLL (nats a token) of blocks [n, N] at each masking rate, and `decoding_scores` of some of them.

    gaps: if the model is trained for such gaps, there is the NLL of blocks with gaps as well.

    Masks and seeds are always the same, and targets in ascending position, whatever the model was trained for. Blocks
    may have PADDING after their ends. decodings: how many blocks are decoded.
    """
    with _evaluating(model):
        scores = {f"nll_{rate}": mean_masked_nll(model, blocks, rate, seed=0) for rate in RATES}
        if gaps is not None:
            tokens = torch.from_numpy(np.ascontiguousarray(blocks)).long()
            problem = gaps.batch(tokens, torch.Generator().manual_seed(0))
            targets = problem.target.sum(1).numpy()
            scores["nll_gaps"] = float(np.average(joint_nll(model, problem), weights=targets))
        return scores | (decoding_scores(model, codec, evenly(blocks, decodings), scorer) if decodings else {})


def mean_nll(scores: dict[str, float]) -> float | None:
    """The mean over masking rates of what `validate` returned, to compare checkpoints by; None for no scores."""
    return float(np.mean([scores[f"nll_{rate}"] for rate in RATES])) if scores else None


@contextmanager
def _evaluating(model: AnyOrderModel) -> Iterator[None]:
    """Evaluation mode, without the network that was compiled for the shapes of training."""
    compiled = model.__dict__.pop("hidden", None)
    model.eval()
    yield
    model.train()
    if compiled is not None:
        model.hidden = compiled  # type: ignore[method-assign]


def masked(blocks: np.ndarray, rate: float, seed: int) -> InfillBatch:
    """Blocks [n, N], `rate` of whose tokens are targets and all others given."""
    tokens = torch.from_numpy(np.ascontiguousarray(blocks)).long()
    target = random_targets(tokens, rate, torch.Generator().manual_seed(seed))
    return InfillBatch(tokens.clamp(min=0), ~target & (tokens != PADDING), target)


def masked_nll(model: AnyOrderModel, blocks: np.ndarray, rate: float, seed: int, batch: int = 8) -> np.ndarray:
    """Negative joint log-density of `rate` of the tokens of each block, given the rest: [n, N] -> [n], nats a token."""
    return joint_nll(model, masked(blocks, rate, seed), batch)


def joint_nll(model: AnyOrderModel, problem: InfillBatch, batch: int = 8) -> np.ndarray:
    """Negative joint log-density of each row's targets: [n], nats a token. batch: rows scored together."""
    parts = [problem.select(slice(start, start + batch)) for start in range(0, len(problem.tokens), batch)]
    scores = [log_prob(model, *part.to(model.device)).sum(1) for part in parts]
    return (-torch.cat(scores).cpu() / problem.target.sum(1)).numpy()


def mean_masked_nll(model: AnyOrderModel, blocks: np.ndarray, rate: float, seed: int) -> float:
    """The mean of `masked_nll` over the targets of all blocks."""
    targets = masked(blocks, rate, seed).target.sum(1).numpy()
    weights = (targets / targets.mean()).astype(np.float32)  # all 1 for packed blocks
    return float((masked_nll(model, blocks, rate, seed) * weights).mean())


def decoding_scores(
    model: AnyOrderModel, codec: TextCodec, blocks: np.ndarray, scorer: TextScorer | None
) -> dict[str, float]:
    """NFE a token, and the share of drafts accepted, of ASSD with self drafts on blocks [n, N], most of them masked.

    With a scorer also the mean generative perplexity, and the mean entropy, of the decoded texts.
    """
    problem = masked(blocks, DECODED_RATE, seed=1).to(model.device)
    result = sample(model, *problem, SamplerConfig(), range(len(blocks)))
    scores = {
        "assd_nfe_per_token": float(result.nfe.sum() / result.targets.sum()),
        "assd_acceptance": float(result.accepted.sum() / result.proposed.sum().clamp(min=1)),
    }
    if scorer is not None:
        texts: list[TextScore] = []
        for row, present in zip(result.tokens, problem.given | problem.target, strict=True):
            ids = row[present]  # without padding
            texts += scorer(model, [codec.decode(ids.tolist())], ids[None])
        scores["gen_perplexity"] = float(np.mean([np.exp(text.nll) for text in texts]))
        scores["gen_entropy"] = float(np.mean([text.entropy for text in texts]))
    return scores


def ngram_baselines(train_blocks: np.ndarray | Texts, blocks: np.ndarray, vocab_size: int) -> dict[str, float]:
    """`ngram_nll` at each masking rate, with counts from (some of) the training blocks."""
    train = np.asarray(evenly(train_blocks, BASELINE_BLOCKS))
    return {
        f"{name}_nll_{rate}": value
        for rate in RATES
        for name, value in ngram_nll(train, blocks, rate, vocab_size, seed=0).items()
    }


def ngram_nll(
    train_blocks: np.ndarray, blocks: np.ndarray, rate: float, vocab_size: int, seed: int
) -> dict[str, float]:
    """NLL (nats a token) of the tokens that `masked_nll` masks, given their left neighbours, under n-gram counts.

    unigram: add-one counts. bigram: absolute discounting (0.75) that backs off to the unigram. What is computed at
    PADDING, which is never a target or its left neighbour, is not used.
    """
    unigram = np.bincount(train_blocks[train_blocks != PADDING], minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs = (train_blocks[:, :-1].astype(np.int64) * vocab_size + train_blocks[:, 1:])[train_blocks[:, 1:] != PADDING]
    keys, counts = np.unique(pairs, return_counts=True)
    lefts = keys // vocab_size
    left_total = np.bincount(lefts, weights=counts, minlength=vocab_size)
    left_types = np.bincount(lefts, minlength=vocab_size)

    target = masked(blocks, rate, seed).target.numpy()
    log_unigram = np.log(unigram[blocks])
    left, right = blocks[:, :-1].astype(np.int64), blocks[:, 1:]
    index = np.searchsorted(keys, left * vocab_size + right).clip(max=len(keys) - 1)
    count = np.where(keys[index] == left * vocab_size + right, counts[index], 0)
    total = np.maximum(left_total[left], 1)
    back_off = np.where(left_total[left] > 0, 0.75 * left_types[left] / total, 1.0)
    log_bigram = log_unigram.copy()
    log_bigram[:, 1:] = np.log(np.maximum(count - 0.75, 0) / total + back_off * unigram[right])
    return {"unigram": -log_unigram[target].mean().item(), "bigram": -log_bigram[target].mean().item()}
