"""Seconds for samples of one prompt, which is read once, beside as many prompts that are each read: ratio of the two.

    python benchmarks/shared_prompt.py                      # 12 layers x 768, 512 tokens, 64 samples
    python benchmarks/shared_prompt.py --device cuda --dtype bfloat16

The texts of the second kind differ in one token of the prompt each, so that nothing is shared; all else is the same.
The model has random weights of GPT-2's size. Both are run alternately; the fastest run of each counts.
"""

import argparse
import json

import torch

from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.load import DTYPES, pick_device
from asarm.models.ops import pack_weights
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch


def batch_of(args: argparse.Namespace, shared: bool, device: torch.device) -> InfillBatch:
    """A gap in the middle of each text."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(args.vocab_size - 1, (1, args.length), generator=generator).repeat(args.samples, 1)
    if not shared:
        tokens[:, 0] = torch.arange(args.samples)
    start = (args.length - args.gap) // 2
    target = torch.zeros_like(tokens, dtype=torch.bool)
    target[:, start : start + args.gap] = True
    return InfillBatch(tokens, ~target, target).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("samples", 64), ("length", 512), ("gap", 32), ("layers", 12), ("width", 768), ("heads", 12),
        ("vocab_size", 50258), ("runs", 3), ("k", 5),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--samplers", nargs="+", default=["sequential", "fused", "assd"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    device = pick_device(args.device)
    torch.manual_seed(0)
    shape = {"n_positions": args.length, "n_embd": args.width, "n_layer": args.layers, "n_head": args.heads}
    config = AnyOrderGPT2Config(vocab_size=args.vocab_size, mask_token_id=args.vocab_size - 1, **shape)
    model = AnyOrderGPT2(config).eval().to(device, DTYPES[args.dtype])
    pack_weights(model)  # as `load` does
    for sampler in args.samplers:
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(args.runs):
            for shared, found in seconds.items():
                settings = SamplerConfig(sampler=sampler, k=args.k)
                found.append(sample(model, *batch_of(args, shared, device), settings, range(args.samples)).seconds)
        one, many = min(seconds[True]), min(seconds[False])
        print(
            json.dumps({"sampler": sampler, "shared_s": one, "own_s": many, "ratio": round(one / many, 3)}), flush=True
        )


if __name__ == "__main__":
    main()
