"""Gaps filled left to right by a causal language model."""

from collections.abc import Sequence

import torch

from asarm.evals.hub import load_causal
from asarm.evals.infilling.fim import find_fim
from asarm.evals.infilling.infill import InfillResult, Row
from asarm.sampling.counter_rng import TOKEN, CounterRNG
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import text_after


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
    def fill(self, rows: Sequence[Row], temperature: float, seeds: Sequence[int]) -> list[InfillResult]:
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
        noise = CounterRNG(torch.tensor(list(seeds), dtype=torch.long, device=self.device))
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
            text = text_after(self.codec, gap.prefix_tokens, ids[:length])
            filled.append(InfillResult(text, ids[:length], length, length))
        return filled
