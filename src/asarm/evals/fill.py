"""Gaps of texts filled in batches: by an any-subset model with the length given or searched, or left to right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from asarm.codec import TextCodec
from asarm.config import SamplerConfig
from asarm.evals.fim import find_fim
from asarm.evals.gap_length import choose
from asarm.evals.gapped import Gapped
from asarm.evals.hub import load_causal
from asarm.evals.padding import padded_parts
from asarm.objective import log_prob
from asarm.sampling import sample
from asarm.sampling.noise import TOKEN, Noise
from asarm.text import text_behind

PREFIX, GAP, SUFFIX = range(3)
Row = tuple[Gapped, int]  # a text, and how many tokens its gap takes


@dataclass
class Filled:
    """A filled gap: its text (white space at the ends and all) and tokens, and what it cost.

    drawn: tokens drawn, those of proposals that were not chosen among them. cut: tokens of prefix and suffix that were
    left out, for the model takes no more. nfe: function evaluations, those for
    scores among them. proposed, accepted: drafts judged and kept, by index in the window. scores: of each length that
    a search proposed, nats a token.
    """

    text: str
    tokens: list[int]
    drawn: int
    nfe: int
    proposed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    cut: int = 0


def lay_out(
    stories: Sequence[Gapped], gaps: Sequence[list[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts with these tokens in their gaps, as a batch: tokens [B, N] int64, and part [B, N] int64, which says of
    each place whether it is PREFIX, GAP, SUFFIX or PADDING."""
    rows = [(story.prefix_tokens, gap, story.suffix_tokens) for story, gap in zip(stories, gaps, strict=True)]
    return padded_parts(rows, device)


def fill(
    model, codec: TextCodec, rows: Sequence[Row], config: SamplerConfig, seeds: Sequence[int], see_suffix: bool = True
) -> list[Filled]:
    """Each gap filled once. see_suffix: without it, the model goes on from the prefix and knows of nothing behind."""
    stories, lengths = zip(*rows, strict=True)
    tokens, part = lay_out(stories, [[codec.mask_token_id] * length for length in lengths], model.device)
    given = (part == PREFIX) | (part == SUFFIX) if see_suffix else part == PREFIX
    result = sample(model, tokens, given, part == GAP, config, seeds)
    filled = []
    for row, length in enumerate(lengths):
        gap = result.tokens[row][part[row] == GAP].tolist()
        text = text_behind(codec, stories[row].prefix_tokens, gap)
        judged, kept = result.proposed[row].tolist(), result.accepted[row].tolist()
        filled.append(Filled(text, gap, length, int(result.nfe[row]), judged, kept))
    return filled


def scores(model, stories: Sequence[Gapped], gaps: Sequence[list[int]]) -> list[float]:
    """Exact joint log-density of gap and suffix given the prefix, over their number of tokens, of each story: nats."""
    tokens, part = lay_out(stories, gaps, model.device)
    behind = (part == GAP) | (part == SUFFIX)
    return (log_prob(model, tokens, part == PREFIX, behind).sum(1) / behind.sum(1)).tolist()


def search(
    model,
    codec: TextCodec,
    stories: Sequence[Gapped],
    proposals: Sequence[list[int]],
    config: SamplerConfig,
    seed: Callable[[Gapped, int], int],
    batch_size: int,
) -> list[Filled]:
    """Each gap filled once with each of its proposed lengths; the text that `choose` prefers is kept.

    seed: of a story filled with so many tokens. batch_size: fillings that are drawn together.
    """
    rows = [(place, length) for place, lengths in enumerate(proposals) for length in lengths]
    rows.sort(key=lambda row: stories[row[0]].around + row[1])  # like lengths together
    tried = [{} for _ in stories]  # for each story, {length: (filling, score)}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        some = [(stories[place], length) for place, length in batch]
        filled = fill(model, codec, some, config, [seed(*row) for row in some])
        marks = scores(model, [story for story, _ in some], [one.tokens for one in filled])
        for (place, length), one, mark in zip(batch, filled, marks, strict=True):
            tried[place][length] = (one, mark)
    return [_best(one) for one in tried]


def _best(tried: dict[int, tuple[Filled, float]]) -> Filled:
    """The chosen one of all fillings, with what all of them cost."""
    marks = {length: mark for length, (_, mark) in tried.items()}
    best, every = tried[choose(marks)][0], [one for one, _ in tried.values()]
    return Filled(
        best.text,
        best.tokens,
        drawn=sum(one.drawn for one in every),
        nfe=sum(one.nfe + 1 for one in every),  # one for the score
        proposed=[sum(counts) for counts in zip(*(one.proposed for one in every), strict=True)],
        accepted=[sum(counts) for counts in zip(*(one.accepted for one in every), strict=True)],
        scores=dict(sorted(marks.items())),
    )


class CausalModel:
    """A left-to-right language model of the Hub or a folder, that goes on from the prefix alone, or from a prompt that
    shows it the suffix, too (see `asarm.evals.fim`)."""

    def __init__(self, name: str, device: torch.device):
        """Raises InputError when it cannot be loaded."""
        self.model, tokenizer = load_causal(name, "causal model", device)
        self.device, self.codec = device, TextCodec(tokenizer)
        self.longest = getattr(self.model.config, "max_position_embeddings", None)
        self.fim = find_fim(tokenizer)
        self.never = sorted({*tokenizer.all_special_ids, *(self.fim or ())})  # never drawn
        # What its tokenizer puts before a text, if anything.
        self.begin = [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]

    @torch.inference_mode()
    def fill(self, rows: Sequence[Row], temperature: float, seeds: Sequence[int]) -> list[Filled]:
        """As many tokens as the row says behind each prefix. Its special tokens, such as the end of a text, are never
        drawn.

        Prefixes stand at the right of the batch, so that all rows go on at the same place; the noise of a token
        depends on the row's seed and on how many tokens of the gap come before it.
        """
        gaps, lengths = zip(*rows, strict=True)
        prompts = [[*self.begin, *gap.prefix_tokens] or [self.codec.eos_token_id or 0] for gap in gaps]
        width = max(map(len, prompts))
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        seen = torch.zeros(len(rows), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            start = width - len(prompt)
            tokens[row, start:] = torch.tensor(prompt, dtype=torch.long)
            seen[row, start:] = 1
        noise = Noise(torch.tensor(list(seeds), dtype=torch.long, device=self.device))
        tokens, seen, cache, drawn = tokens.to(self.device), seen.to(self.device), None, []
        places = (seen.cumsum(1) - 1).clamp(min=0)
        for index in range(max(lengths)):
            output = self.model(tokens, attention_mask=seen, position_ids=places, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            law = torch.log_softmax(output.logits[:, -1].float() / temperature, dim=-1)  # [B, V]
            law[:, self.never] = float("-inf")
            here = torch.full((len(rows), 1), index, device=self.device)
            tokens = (law + noise.gumbel(here, law.shape[-1], TOKEN)[:, 0]).argmax(-1, keepdim=True)  # [B, 1]
            drawn.append(tokens)
            seen = torch.cat((seen, torch.ones_like(tokens)), dim=1)
            places = places[:, -1:] + 1
        filled = []
        for gap, length, ids in zip(gaps, lengths, torch.cat(drawn, dim=1).tolist(), strict=True):
            text = text_behind(self.codec, gap.prefix_tokens, ids[:length])
            filled.append(Filled(text, ids[:length], length, length))
        return filled
