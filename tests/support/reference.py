"""The paper's samplers in the plain way, on `transformers`' own XLNet: the yardstick for truth and for speed.

Guo & Ermon, arXiv 2504.20456. One text at a time, tokens in position order, permutation masks and one-hot target
mappings, no cache: every function evaluation computes every token anew. Nothing here uses `asarm`.

Shapes: B texts, N positions, Q places to be predicted, V vocabulary.
"""

from dataclasses import dataclass

import torch


class Chance:
    """Random draws. The samplers say where in the text a draw is for, so that tests can tie draws to places."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def token(self, law: torch.Tensor, place: int) -> int:
        """A token from a law [V] for a place."""
        return int(torch.multinomial(law, 1, generator=self.generator))

    def verdict(self, place: int) -> float:
        """Uniform in [0, 1): is the draft at this place accepted?"""
        return float(torch.rand((), generator=self.generator))

    def replacement(self, law: torch.Tensor, place: int) -> int:
        """A token from a law [V] for a place whose draft was rejected."""
        return self.token(law, place)


@dataclass
class ReferenceResult:
    """tokens: [N] int64, the filled text. nfe: function evaluations. proposed, accepted: drafts judged and kept."""

    tokens: torch.Tensor
    nfe: int = 0
    proposed: int = 0
    accepted: int = 0


def permutation_mask(rank: torch.Tensor, prompt_length: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """[B, N, N] float, 1 where the place i must not see the place j; every known place sees itself besides.

    rank: [B, N] int64, when each place is decoded. prompt_length, known: [B] int64. A prompt token sees the prompt;
    any other place sees the lower ranks, but no more than the first `known`.
    """
    context = torch.clamp(rank, prompt_length[:, None], known[:, None])  # [B, N], ranks seen
    return (rank[:, None, :] >= context[:, :, None]).float()


def reference_logits(
    model,
    tokens: torch.Tensor,
    rank: torch.Tensor,
    prompt_length: torch.Tensor,
    known: torch.Tensor,
    places: torch.Tensor,
) -> torch.Tensor:
    """One function evaluation of an `XLNetLMHeadModel`: logits [B, Q, V] at the places [B, Q].

    tokens: [B, N] int64 in position order; the places of a row must differ (a target mapping adds up queries of the
    same place); the others as in `permutation_mask`. With known = N these are the joint's
    conditionals, with known = n those of independent drafts given the first n ranks.
    """
    mapping = torch.nn.functional.one_hot(places, tokens.shape[1]).float()  # [B, Q, N]
    mask = permutation_mask(rank, prompt_length, known)
    return model(tokens, perm_mask=mask, target_mapping=mapping, use_mems=False).logits


class _Text:
    """One text while it is being filled; `laws` is a function evaluation."""

    def __init__(self, model, tokens: torch.Tensor, given: torch.Tensor, mask_token_id: int, temperature: float):
        self.model, self.mask_token_id, self.temperature = model, mask_token_id, temperature
        self.tokens = tokens.masked_fill(~given, mask_token_id)
        self.order = torch.cat((given.nonzero()[:, 0], (~given).nonzero()[:, 0]))  # rank -> place
        self.rank = self.order.argsort()  # place -> rank
        self.prompt_length = int(given.sum())
        self.result = ReferenceResult(self.tokens)

    def laws(self, ranks: range, known: int) -> torch.Tensor:
        """The laws [Q, V] of the tokens at these ranks; the mask token has probability 0."""
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
    model, tokens: torch.Tensor, given: torch.Tensor, mask_token_id: int, chance: Chance, temperature: float = 1.0
) -> ReferenceResult:
    """Fill all places of one text [N] that are not given, one a function evaluation, in ascending order."""
    text = _Text(model, tokens, given, mask_token_id, temperature)
    for n in range(text.prompt_length, len(tokens)):
        place = int(text.order[n])
        text.tokens[place] = chance.token(text.laws(range(n, n + 1), known=n)[0], place)
    return text.result


@torch.inference_mode()
def reference_assd(
    model,
    tokens: torch.Tensor,
    given: torch.Tensor,
    mask_token_id: int,
    chance: Chance,
    k: int,
    temperature: float = 1.0,
) -> ReferenceResult:
    """The same by any-subset speculative decoding: k drafts by the model itself, verified in one evaluation."""
    text = _Text(model, tokens, given, mask_token_id, temperature)
    n, total = text.prompt_length, len(tokens)
    while n < total:
        window = range(n, min(n + k, total))
        drafted = text.laws(window, known=n)  # q [K, V]
        for rank, law in zip(window, drafted, strict=True):
            place = int(text.order[rank])
            text.tokens[place] = chance.token(law, place)
        if len(window) == 1:
            return text.result  # the only target left: its draft has the joint law
        joint = text.laws(window, known=total)  # p [K, V]
        for rank, p, q in zip(window, joint, drafted, strict=True):
            place = int(text.order[rank])
            token = int(text.tokens[place])
            text.result.proposed += 1
            n += 1
            if chance.verdict(place) < float(p[token] / q[token]):
                text.result.accepted += 1
                continue
            rest = (p - q).clamp(min=0)
            # Where p and q differ by rounding only, nothing may be left; then p is the law.
            text.tokens[place] = chance.replacement(rest / rest.sum() if rest.sum() > 0 else p, place)
            break
    return text.result
