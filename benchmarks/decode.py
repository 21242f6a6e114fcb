"""Cost of decoding: the cached sampler beside the same model that recomputes every token in every evaluation.

    python benchmarks/decode.py [--models tiny-text base] [--lengths 128 512]

`base` is a random model of GPT-2's shape (12 layers x 768); names and folders are loaded. The recomputing model is the
reference way of the field: each evaluation runs all N tokens of the text through the content stream, whatever is
known; queries are only those asked for. It is timed over `--reference_nfe` evaluations (they all cost the same), and
its seconds a text are that times the evaluations the text takes. The cached sampler decodes whole texts. Both run in
turn in one process; batch 1, 95 % masked, the texts are random tokens (the bundled model's acceptance on real text
stands in the evaluation's results).
"""

import argparse
import time

import torch

from asarm.config import SamplerConfig
from asarm.files import write_json
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.load import load
from asarm.objective import random_targets
from asarm.provenance import provenance
from asarm.sampling import sample

SAMPLERS = {
    "sequential": SamplerConfig(sampler="sequential"),
    "assd self, k=5": SamplerConfig(k=5),
    "assd ngram, k=5": SamplerConfig(draft="ngram", k=5),
}


class TokenCache:
    """Stands in for the key/value cache and keeps tokens only: [B, N] in rank order."""

    def __init__(self, batch: int, length: int, device):
        self.tokens = torch.zeros(batch, length + 1, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.contexts = torch.ones_like(self.tokens)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)

    def set_lengths(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths.clone()

    def keep_rows(self, rows: torch.Tensor) -> None:
        for name in ("tokens", "positions", "contexts", "lengths"):
            setattr(self, name, getattr(self, name)[rows])


class Recomputing:
    """A model without a key/value cache: all N tokens go through the network in each evaluation."""

    def __init__(self, model):
        self.model, self.config, self.device = model, model.config, model.device

    def new_cache(self, batch: int, capacity: int) -> TokenCache:
        return TokenCache(batch, capacity, self.device)

    def __call__(self, tokens, positions, content_context, query_positions, query_context, cache):
        slots = cache.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        slots = slots.clamp(max=cache.tokens.shape[1] - 1)
        cache.tokens.scatter_(1, slots, tokens)
        cache.positions.scatter_(1, slots, positions)
        cache.contexts.scatter_(1, slots, content_context)
        kept = slice(0, cache.tokens.shape[1] - 1)
        return self.model(
            cache.tokens[:, kept], cache.positions[:, kept], cache.contexts[:, kept], query_positions, query_context
        )


def text(length: int, targets: int, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random text [1, N] with so many targets: tokens, given, target."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, vocab_size, (1, length), generator=generator)
    target = random_targets(1, length, targets / length, generator)
    return tokens, ~target, target


def measure(model, length: int, config: SamplerConfig, reference_nfe: int) -> dict[str, float]:
    """Milliseconds an evaluation and seconds a text, cached and recomputing, and how many times faster that is."""
    masked = length - int(0.05 * length) - 1
    sample(model, *text(length, 8, model.config.vocab_size), config, [0])  # warm-up
    cached = sample(model, *text(length, masked, model.config.vocab_size), config, [0])
    recomputing = Recomputing(model)
    few = text(length, reference_nfe, model.config.vocab_size)
    sample(recomputing, *text(length, 2, model.config.vocab_size), config, [0])
    reference = sample(recomputing, *few, config, [0])
    nfe = int(cached.nfe)
    reference_ms = 1e3 * reference.seconds / int(reference.nfe)
    return {
        "nfe": nfe,
        "cached_ms": 1e3 * cached.seconds / nfe,
        "cached_s": cached.seconds,
        "reference_ms": reference_ms,
        "reference_s": reference_ms * nfe / 1e3,
        "times_faster": reference_ms * nfe / 1e3 / cached.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny-text", "base"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--reference_nfe", type=int, default=16, help="evaluations of the recomputing model to time")
    parser.add_argument("--output", help="also write the numbers to this JSON file")
    arguments = parser.parse_args()
    start, rows = time.time(), []
    print("| model | N | sampler | NFE | cached ms/NFE | cached s/text | recomputing ms/NFE | s/text | faster |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in arguments.models:
        shape = AnyOrderGPT2Config(mask_token_id=50257)
        model = AnyOrderGPT2(shape).eval() if name == "base" else load(name)[0]
        for length in arguments.lengths:
            for sampler, config in SAMPLERS.items():
                row = measure(model, length, config, arguments.reference_nfe)
                rows.append({"model": name, "length": length, "sampler": sampler} | row)
                print(
                    f"| {name} | {length} | {sampler} | {row['nfe']} | {row['cached_ms']:.1f} | {row['cached_s']:.2f} "
                    f"| {row['reference_ms']:.1f} | {row['reference_s']:.1f} | {row['times_faster']:.1f}x |",
                    flush=True,
                )
    print(f"\n{provenance()['device']}, float32, {time.time() - start:.0f} s in all")
    if arguments.output:
        write_json(arguments.output, {"rows": rows} | provenance())


if __name__ == "__main__":
    main()
