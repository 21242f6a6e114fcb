"""Any-subset speculative decoding (ASSD; Guo & Ermon, arXiv 2504.20456, algorithm 1): draft k tokens, verify them in
one function evaluation, keep those that the joint accepts."""

import torch

from asarm.sampling.decode_state import DecodeState
from asarm.sampling.result import SampleResult
from asarm.sampling.verification import VERIFICATION_RULES, Window


def sample_assd(model, tokens, given, target, config, seeds, trace) -> SampleResult:
    """Exact when tolerance is 0; NFE <= targets. Arguments as in `asarm.sampling.sample`."""
    state = DecodeState(model, tokens, given, target, config, seeds, window=config.k, trace=trace)
    while state.unfinished:
        size = (state.total - state.decoded).clamp(max=config.k)  # [B]
        ranks = state.next_ranks(int(size.max()))  # [B, K]
        positions = state.positions.gather(1, ranks)
        choice = state.choice(positions)
        draft_and_verify = _self_window if config.draft == "self" else _ngram_window
        drafts, log_q, log_p, evaluations = draft_and_verify(state, ranks, size, choice)
        window = Window(log_p, log_q, drafts, size, positions, choice)
        accepted, following = VERIFICATION_RULES[config.coupling](window, state.noise, config.tolerance)
        state.settle_window(drafts, size, accepted, following, accepted < size, evaluations)
    return state.result


def _self_window(state: DecodeState, ranks, size, choice):
    """Drafts by the model itself: k places in parallel, then the joint law of all but the first.

    The first place's draft law is its joint law, so it is accepted whatever happens, and the last draft's content is
    read by nobody yet: verifying takes k - 1 tokens and k - 1 queries, and none at all when one target is left.
    """
    log_q = state.log_probs(state.decoded, ranks, state.decoded[:, None].expand_as(ranks))
    drafts = choice.tokens(log_q)
    state.place(ranks, drafts)
    log_p = log_q[:, :1]
    if ranks.shape[1] > 1:
        later = state.log_probs(state.decoded + size - 1, ranks[:, 1:], ranks[:, 1:])
        log_p = torch.cat((log_p, later), dim=1)
    return drafts, log_q, log_p, 1 + (size > 1).long()


def _ngram_window(state: DecodeState, ranks, size, choice):
    """Drafts from the row's own text, which cost no function evaluation."""
    drafts, log_q = ngram_drafts(state, choice, ranks)
    state.place(ranks, drafts)
    log_p = state.log_probs(state.decoded + size - 1, ranks, ranks)
    return drafts, log_q, log_p, torch.ones_like(size)


def bigram_distribution(
    text: torch.Tensor, known: torch.Tensor, left: torch.Tensor, has_left: torch.Tensor, vocab_size: int
):
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


def ngram_drafts(state: DecodeState, choice, ranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
        law = bigram_distribution(text, known, text.gather(1, before)[:, 0], has_left[:, 0], vocab_size)
        log_laws.append(law.log())
        drafts.append(choice.tokens(log_laws[-1][:, None], slice(index, index + 1))[:, 0])
        # Behind a row's end the place is scratch, but it must not spoil what is known of the text.
        spoils = known.gather(1, place)
        text = text.scatter(1, place, torch.where(spoils, text.gather(1, place), drafts[-1][:, None]))
        readable = readable.scatter(1, place, True)
    return torch.stack(drafts, 1), torch.stack(log_laws, 1)
