"""`CausalModel`: fills gaps from left to right with a causal language model."""

from collections.abc import Sequence

import torch

from asarm.evals.hub import load_causal
from asarm.evals.infilling.fim import find_fim
from asarm.evals.infilling.infill import InfillResult, Row
from asarm.models.load import vocabulary_size
from asarm.sampling.counter_rng import TOKEN, CounterRNG
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import text_after
from asarm.tokenization.transforms import Transforms


class CausalModel:
    """A left-to-right language model of the Hub or a folder, that goes on from the prefix alone, or from a prompt that
    shows it the suffix, too (see `asarm.evals.infilling.fim`).

    longest: tokens that it takes, None for no limit. begin: what its tokenizer puts before a text, if anything.
    """

    def __init__(self, name: str, device: torch.device):
        """Raises InputError when it cannot be loaded."""
        self.model, tokenizer = load_causal(name, "causal model", device)
        self.device, self.codec = device, TextCodec(tokenizer)
        self.longest = getattr(self.model.config, "max_position_embeddings", None)
        self.fim = find_fim(tokenizer)
        textless = range(vocabulary_size(tokenizer), self.model.config.vocab_size)  # rows that fill up the vocabulary
        self.never = sorted({*tokenizer.all_special_ids, *(self.fim or ()), *textless})  # never drawn
        self.begin = [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]

    def fill(self, rows: Sequence[Row], transforms: Transforms, seeds: Sequence[int]) -> list[InfillResult]:
        """After each prefix as many tokens as its gap takes. Special tokens, such as the end of a text, are never
        drawn."""
        prompts = [[*self.begin, *example.prefix_tokens] or [self.codec.eos_token_id or 0] for example, _ in rows]
        longest = max(length for _, length in rows)
        if not longest:  # nothing but gaps of no tokens
            return [InfillResult("", [], 0, 0) for _ in rows]
        drawn = self._draw(prompts, longest, transforms, seeds)
        filled = []
        for (example, length), ids in zip(rows, drawn.tolist(), strict=True):
            text = text_after(self.codec, example.prefix_tokens, ids[:length])
            filled.append(InfillResult(text, ids[:length], length, length))
        return filled

    @torch.inference_mode()
    def _draw(self, prompts: list[list[int]], count: int, transforms: Transforms, seeds: Sequence[int]) -> torch.Tensor:
        """`count` tokens after each of B prompts: [B, count] int64.

        Prompts are padded on the left, so that all rows go on at the same column; the random numbers of a token depend
        on the row's seed and on how many drawn tokens come before it.
        """
        tokens, attention_mask = (part.to(self.device) for part in left_padded(prompts))  # [B, W]
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        lengths = attention_mask.sum(1, keepdim=True)  # [B, 1]
        ranked = torch.nn.functional.pad(tokens, (0, count))  # [B, W + count], each row from its first token on
        ranked = ranked.gather(
            1, (torch.arange(ranked.shape[1], device=self.device) + tokens.shape[1] - lengths) % ranked.shape[1]
        )
        ranks = torch.arange(ranked.shape[1], device=self.device).expand_as(ranked)
        rng, cache, drawn = CounterRNG(torch.tensor(list(seeds), dtype=torch.long, device=self.device)), None, []
        for index in range(count):
            output = self.model(
                tokens, attention_mask=attention_mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            logits = output.logits[:, -1:].float()
            logits[..., self.never] = float("-inf")
            at = lengths + index
            log_probs = transforms.log_probs(logits, ranked, ranks, at, at)[:, 0]  # [B, V]
            counter = torch.full((len(tokens), 1), index, device=self.device)
            gumbel = rng.gumbel(counter, log_probs.shape[-1], TOKEN)[:, 0]  # [B, V]
            tokens = (log_probs + gumbel).argmax(-1, keepdim=True)  # [B, 1]
            drawn.append(tokens)
            ranked.scatter_(1, at, tokens)
            attention_mask = torch.cat((attention_mask, torch.ones_like(tokens)), dim=1)
            positions = positions[:, -1:] + 1
        return torch.cat(drawn, dim=1)


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids with padding (0) on the left, and the attention mask (0 at padding): [B, W] int64 each."""
    width = max(map(len, prompts))
    tokens, mask = torch.zeros(2, len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return tokens, mask
