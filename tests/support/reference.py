"""Reference implementation of the paper's samplers on `transformers`' own XLNet, for comparisons of output and speed.

Guo & Ermon, arXiv 2504.20456. One sequence at a time, tokens in position order, permutation masks and one-hot target
mappings, no cache: every function evaluation computes every token again. Nothing here uses `asarm`.

Shapes: B sequences, N positions, Q positions to be predicted, V vocabulary.
"""

from dataclasses import dataclass

import torch


class RandomDraws:
    """Random draws. The samplers say which position a draw is for, so that tests can make draws depend on positions."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def token(self, probs: torch.Tensor, position: int) -> int:
        """A token from a distribution [V], for a position."""
        return int(torch.multinomial(probs, 1, generator=self.generator))

    def verdict(self, position: int) -> float:
        """Uniform in [0, 1), to decide on the draft at a position."""
        return float(torch.rand((), generator=self.generator))

    def replacement(self, probs: torch.Tensor, position: int) -> int:
        """A token from a distribution [V], for a position whose draft was rejected."""
        return self.token(probs, position)


@dataclass
class ReferenceResult:
    """tokens: [N] int64, filled. nfe: function evaluations. proposed, accepted: drafts that were verified, and kept."""

    tokens: torch.Tensor
    nfe: int = 0
    proposed: int = 0
    accepted: int = 0


def permutation_mask(rank: torch.Tensor, prompt_length: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """[B, N, N] float, 1 where position i must not see position j. Every known position sees itself, too.

    rank: [B, N] int64, when each position is decoded. prompt_length, known: [B] int64. A prompt token sees the prompt;
    any other position sees the lower ranks, but no more than the first `known`.
    """
    context = torch.clamp(rank, prompt_length[:, None], known[:, None])  # [B, N], ranks seen
    return (rank[:, None, :] >= context[:, :, None]).float()


def reference_logits(
    model,
    tokens: torch.Tensor,
    rank: torch.Tensor,
    prompt_length: torch.Tensor,
    known: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """One function evaluation of an `XLNetLMHeadModel`: logits [B, Q, V] at the positions [B, Q].

    tokens: [B, N] int64 in position order. The positions of a row must differ (a target mapping adds up queries of the
    same position). The rest is as in `permutation_mask`. With known = N these are the joint's conditionals, with
    known = n those of independent drafts given the first n ranks.
    """
    mapping = torch.nn.functional.one_hot(positions, tokens.shape[1]).float()  # [B, Q, N]
    mask = permutation_mask(rank, prompt_length, known)
    return model(tokens, perm_mask=mask, target_mapping=mapping, use_mems=False).logits


class _Decoding:
    """One sequence while it is being filled; `probs` is a function evaluation."""

    def __init__(self, model, tokens: torch.Tensor, given: torch.Tensor, mask_token_id: int, temperature: float):
        self.model, self.mask_token_id, self.temperature = model, mask_token_id, temperature
        self.tokens = tokens.masked_fill(~given, mask_token_id)
        self.order = torch.cat((given.nonzero()[:, 0], (~given).nonzero()[:, 0]))  # rank -> position
        self.rank = self.order.argsort()  # position -> rank
        self.prompt_length = int(given.sum())
        self.result = ReferenceResult(self.tokens)

    def probs(self, ranks: range, known: int) -> torch.Tensor:
        """The distributions [Q, V] of the tokens at these ranks; the mask token has probability 0."""
        logits = reference_logits(
            self.model,
            self.tokens[None],
            self.rank[None],
            torch.tensor([self.prompt_length], device=self.rank.device),
            torch.tensor([known], device=self.rank.device),
            self.order[None, ranks.start : ranks.stop],
        )[0]
        logits[:, self.mask_token_id] = float("-inf")
        self.result.nfe += 1
        return torch.softmax(logits / self.temperature, dim=-1)


@torch.inference_mode()
def reference_sequential(
    model, tokens: torch.Tensor, given: torch.Tensor, mask_token_id: int, draws: RandomDraws, temperature: float = 1.0
) -> ReferenceResult:
    """Fill all positions of one sequence [N] that are not given, one a function evaluation, in ascending order."""
    state = _Decoding(model, tokens, given, mask_token_id, temperature)
    for n in range(state.prompt_length, len(tokens)):
        position = int(state.order[n])
        state.tokens[position] = draws.token(state.probs(range(n, n + 1), known=n)[0], position)
    return state.result


@torch.inference_mode()
def reference_assd(
    model,
    tokens: torch.Tensor,
    given: torch.Tensor,
    mask_token_id: int,
    draws: RandomDraws,
    k: int,
    temperature: float = 1.0,
) -> ReferenceResult:
    """The same by any-subset speculative decoding: k drafts by the model itself, verified in one evaluation."""
    state = _Decoding(model, tokens, given, mask_token_id, temperature)
    n, total = state.prompt_length, len(tokens)
    while n < total:
        window = range(n, min(n + k, total))
        drafted = state.probs(window, known=n)  # q [K, V]
        for rank, q in zip(window, drafted, strict=True):
            position = int(state.order[rank])
            state.tokens[position] = draws.token(q, position)
        if len(window) == 1:
            return state.result  # the only target left: its draft has the joint's distribution
        joint = state.probs(window, known=total)  # p [K, V]
        for rank, p, q in zip(window, joint, drafted, strict=True):
            position = int(state.order[rank])
            token = int(state.tokens[position])
            state.result.proposed += 1
            n += 1
            if draws.verdict(position) < float(p[token] / q[token]):
                state.result.accepted += 1
                continue
            residual = (p - q).clamp(min=0)
            # Where p and q differ by rounding only, nothing may be left; then p is the distribution.
            probs = residual / residual.sum() if residual.sum() > 0 else p
            state.tokens[position] = draws.replacement(probs, position)
            break
    return state.result
