"""The n-gram draft: a bigram table with unigram back-off over what is visible of the row's own text."""

import torch

from asarm.sampling.state import Decoding


def successors(text: torch.Tensor, known: torch.Tensor, left: torch.Tensor, has_left: torch.Tensor, vocab_size: int):
    """Law [B, V] of the token after `left` [B]: how often each followed it in the known text [B, N].

    Where `left` was never followed by anything (or there is none: has_left [B] false) the law is that of the known
    tokens, and uniform where nothing is known. The table is counted anew each time, so it is always up to date.
    """
    pairs = known[:, :-1] & known[:, 1:] & (text[:, :-1] == left[:, None]) & has_left[:, None]
    law = text.new_zeros(len(text), vocab_size, dtype=torch.float32)
    bigram = law.scatter_add(1, text[:, 1:], pairs.float())
    unigram = law.scatter_add(1, text, known.float())
    law = torch.where(bigram.sum(1, keepdim=True) > 0, bigram, unigram)
    law = torch.where(law.sum(1, keepdim=True) > 0, law, torch.ones_like(law))
    return law / law.sum(1, keepdim=True)


def ngram_drafts(state: Decoding, choice, ranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Drafts [B, K] for the next ranks, each given the token to its left (decoded or drafted), and log laws [B, K, V].

    choice: what to draw with. ranks: [B, K] int64, the ranks to draft for.
    """
    width, vocab_size = int(state.total.max()), state.model.config.vocab_size
    size = int(state.positions.max()) + 1
    text = state.tokens.new_zeros(len(state.tokens), size).scatter(
        1, state.positions[:, :width], state.tokens[:, :width]
    )
    settled = torch.arange(width, device=ranks.device) < state.decoded[:, None]
    known = torch.zeros_like(text, dtype=torch.bool).scatter(1, state.positions[:, :width], settled)
    readable = known.clone()  # decoded, or drafted in this window
    drafts, log_laws = [], []
    for index in range(ranks.shape[1]):
        place = state.positions.gather(1, ranks[:, index : index + 1])  # [B, 1]
        before = (place - 1).clamp(min=0)
        has_left = (place > 0) & readable.gather(1, before)
        law = successors(text, known, text.gather(1, before)[:, 0], has_left[:, 0], vocab_size)
        log_laws.append(law.log())
        drafts.append(choice.tokens(log_laws[-1][:, None], slice(index, index + 1))[:, 0])
        # Behind a row's end the place is scratch, but it must not spoil what is known of the text.
        spoils = known.gather(1, place)
        text = text.scatter(1, place, torch.where(spoils, text.gather(1, place), drafts[-1][:, None]))
        readable = readable.scatter(1, place, True)
    return torch.stack(drafts, 1), torch.stack(log_laws, 1)
