"""Cost of decoding, compared with the usual implementation without a cache, and with a left-to-right model.

    python benchmarks/decode.py [--models tiny-text gpt2-base xlnet-base] [--lengths 128 512]
    python benchmarks/decode.py --roofline [--device cuda --dtype bfloat16]

The second command compares with the bound of the machine instead (benchmarks/roofline.py).

`gpt2-base` and `xlnet-base` are random models of 12 layers x 768; other names are loaded. The reference recomputes
every token of the sequence in every evaluation: for XLNet it is the paper's samplers on `transformers`' own model with
the same weights (tests/support/reference.py), for our GPT-2 the same samplers without a key/value cache. It is timed
over a few evaluations (they all cost the same), and its seconds a text are that time multiplied by the evaluations that
the sequence takes. Sequences are random tokens, 95 % masked, batch 1 unless said otherwise; everything is run in turn
in one process.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, XLNetLMHeadModel

from asarm.models.backbone import AnyOrderModel
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.load import load, pick_device, pick_dtype
from asarm.models.ops import pack_weights
from asarm.models.xlnet import AnyOrderXLNet, AnyOrderXLNetConfig
from asarm.objective.masking import random_targets
from asarm.sampling import SampleResult, sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.utils.files import write_json
from asarm.utils.provenance import provenance

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from roofline import compare_with_bandwidth

from support.reference import RandomDraws, reference_assd, reference_sequential

K = 5
SAMPLERS = {
    "sequential": SamplerConfig(sampler="sequential"),
    f"assd self, k={K}": SamplerConfig(draft="blind", k=K),
    f"assd ngram, k={K}": SamplerConfig(draft="ngram", k=K),
}


class TokenCache:
    """A replacement for the key/value cache that holds tokens only: [B, N] in rank order."""

    def __init__(self, batch: int, length: int, device: torch.device):
        self.tokens = torch.zeros(batch, length + 1, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.contexts = torch.ones_like(self.tokens)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)

    def set_lengths(self, lengths: torch.Tensor) -> None:
        self.lengths.copy_(lengths)

    def keep_rows(self, rows: torch.Tensor) -> None:
        for name in ("tokens", "positions", "contexts", "lengths"):
            setattr(self, name, getattr(self, name)[rows])


class UncachedModel:
    """A model without a key/value cache: all N tokens go through the network in each evaluation."""

    def __init__(self, model: AnyOrderModel):
        self.model, self.config, self.device = model, model.config, model.device
        self.logits, self.never_sampled, self.draft_head = model.logits, model.never_sampled, None

    def new_cache(self, batch: int, capacity: int, span: int, static: bool = False) -> TokenCache:
        return TokenCache(batch, capacity, self.device)

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        content_context: torch.Tensor,
        query_positions: torch.Tensor,
        query_context: torch.Tensor,
        cache: TokenCache,
    ) -> torch.Tensor:
        slots = cache.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        slots = slots.clamp(max=cache.tokens.shape[1] - 1)
        cache.tokens.scatter_(1, slots, tokens)
        cache.positions.scatter_(1, slots, positions)
        cache.contexts.scatter_(1, slots, content_context)
        kept = slice(0, cache.tokens.shape[1] - 1)
        return self.model.hidden(
            cache.tokens[:, kept], cache.positions[:, kept], cache.contexts[:, kept], query_positions, query_context
        )


def make_model(name: str) -> AnyOrderModel:
    """A random model of base shape, or a loaded one."""
    torch.manual_seed(0)
    model: AnyOrderModel
    if name == "gpt2-base":
        model = AnyOrderGPT2(AnyOrderGPT2Config(mask_token_id=50257))
    elif name == "xlnet-base":
        shape = {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072, "vocab_size": 32000}
        model = AnyOrderXLNet(AnyOrderXLNetConfig(**shape, mask_token_id=6))
    else:
        return load(name)[0]
    pack_weights(model)  # as `load` does
    return model.eval()


def random_batch(length: int, targets: int, vocab_size: int, batch: int = 1) -> InfillBatch:
    """Random sequences with this many targets each."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, vocab_size, (batch, length), generator=generator)
    target = random_targets(tokens, targets / length, generator)
    return InfillBatch(tokens, ~target, target)


def masked(length: int) -> int:
    """How many tokens of a sequence are targets when 95 % are masked, as in the paper."""
    return length - int(0.05 * length) - 1


def decode(model: AnyOrderModel, length: int, config: SamplerConfig, batch: int = 1) -> SampleResult:
    """Random sequences, 95 % masked, after a warm-up of a few targets."""
    vocab_size = model.config.vocab_size
    sample(model, *random_batch(length, 8, vocab_size, batch), config, range(batch))
    return sample(model, *random_batch(length, masked(length), vocab_size, batch), config, range(batch))


def xlnet_twin(model: AnyOrderXLNet) -> XLNetLMHeadModel:
    """`transformers`' own model with the same weights (shared, not copied)."""
    twin = XLNetLMHeadModel(model.config).eval()
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin


def reference_ms(
    model: AnyOrderModel, twin: XLNetLMHeadModel | None, length: int, config: SamplerConfig, evaluations: int
) -> float | None:
    """Milliseconds of an evaluation of the reference, over at least `evaluations`; None where there is no reference."""
    if twin is None:
        uncached = UncachedModel(model)
        sample(uncached, *random_batch(length, 2, model.config.vocab_size), config, [0])
        result = sample(uncached, *random_batch(length, evaluations, model.config.vocab_size), config, [0])
        return 1e3 * result.seconds / int(result.nfe)
    if config.draft == "ngram" and config.sampler == "assd":
        return None

    def run(targets: int) -> int:
        tokens, given, _ = random_batch(length, targets, model.config.vocab_size)
        arguments = (
            twin,
            tokens[0],
            given[0],
            model.config.mask_token_id,
            RandomDraws(torch.Generator().manual_seed(0)),
        )
        if config.sampler == "sequential":
            return reference_sequential(*arguments).nfe
        return reference_assd(*arguments, k=config.k).nfe

    run(2)
    start = time.perf_counter()
    return 1e3 / run(evaluations) * (time.perf_counter() - start) if evaluations else None


def acceptance_to_match(iteration: float, token: float, k: int) -> float | None:
    """The acceptance rate of uncertain drafts from which one iteration is faster than a left-to-right model.

    iteration, token: times of one iteration of assd and of one token of the other model. An iteration yields the first
    token, which is always accepted, another one, and one for each acceptance in a row: 1 + sum of a^j over j = 0..k-2.
    None where even full acceptance is slower.
    """
    wanted = iteration / token

    def tokens_per_iteration(a: float) -> float:
        return 1 + sum(a**j for j in range(k - 1))

    if tokens_per_iteration(1.0) < wanted:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if tokens_per_iteration(middle) >= wanted else (middle, high)
    return high


@torch.inference_mode()
def causal_ms(length: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Milliseconds a token of `transformers`' GPT-2 (12 x 768) with its cache, sampling from left to right."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval().to(device, dtype)
    count = masked(length)
    prompt = torch.randint(0, 50000, (1, length - count), device=device)
    options = {"do_sample": True, "top_k": 0, "pad_token_id": 50256, "eos_token_id": None}
    model.generate(prompt, max_new_tokens=4, **options)
    start = time.perf_counter()
    out = model.generate(prompt, max_new_tokens=count, **options)
    return 1e3 * (time.perf_counter() - start) / (out.shape[1] - prompt.shape[1])


def show(*cells: object) -> None:
    """Print one row of a Markdown table: floats with three digits, - for None."""
    shown = ("-" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
    print("| " + " | ".join(shown) + " |", flush=True)


def compare_with_reference(models: dict[str, AnyOrderModel], lengths: list[int], evaluations: int) -> list[dict]:
    """Table 1: the samplers compared with the reference."""
    show("model", "N", "sampler", "NFE", "ms/NFE", "s/text", "reference ms/NFE", "s/text", "times as fast")
    show("---", "---:", "---", *["---:"] * 6)
    rows = []
    for name, model in models.items():
        twin = xlnet_twin(model) if isinstance(model, AnyOrderXLNet) else None
        for length in lengths:
            for sampler, config in SAMPLERS.items():
                result = decode(model, length, config)
                nfe, slow = int(result.nfe), reference_ms(model, twin, length, config, evaluations)
                row = {
                    "model": name, "length": length, "sampler": sampler, "nfe": nfe,
                    "ms": 1e3 * result.seconds / nfe, "seconds": result.seconds, "reference_ms": slow,
                    "reference_seconds": slow and slow * nfe / 1e3,
                    "times_as_fast": slow and slow * nfe / 1e3 / result.seconds,
                }  # fmt: skip
                rows.append(row)
                show(*row.values())
    return rows


def compare_batches(models: dict[str, AnyOrderModel], length: int, batch: int) -> list[dict]:
    """Table 2: tokens per second in a batch and alone, for the samplers whose drafts come from the model."""
    show("model", "N", "sampler", "tokens/s, batch 1", f"tokens/s, batch {batch}", "times as many")
    show("---", "---:", "---", *["---:"] * 3)
    rows = []
    for name, model in models.items():
        for sampler, config in SAMPLERS.items():
            if config.draft == "ngram":
                continue
            rates = []
            for size in (1, batch):
                result = decode(model, length, config, size)
                rates.append(int(result.targets.sum()) / result.seconds)
            row = {"model": name, "length": length, "sampler": sampler, "one": rates[0], "batch": rates[1]}
            rows.append(row | {"times": rates[1] / rates[0]})
            show(*rows[-1].values())
    return rows


def compare_with_causal(models: dict[str, AnyOrderModel], length: int, rounds: int) -> list[dict]:
    """Table 3: any order compared with left to right, and the acceptance rate from which assd is faster."""
    show("model", "N", "ms/token, sequential", "ms/token, GPT-2 left to right", "ratio", f"ms/iteration, k={K}",
         "assd faster from acceptance")  # fmt: skip
    show("---", *["---:"] * 6)
    times: dict[str, list[float]] = {"causal": []}
    iterations: dict[str, list[float]] = {}
    for _ in range(rounds):
        times["causal"].append(causal_ms(length))
        for name, model in models.items():
            result = decode(model, length, SAMPLERS["sequential"])
            times.setdefault(name, []).append(1e3 * result.seconds / int(result.targets))
            result = decode(model, length, SAMPLERS[f"assd self, k={K}"])
            iterations.setdefault(name, []).append(1e3 * result.seconds / int(result.proposed[0, 0]))
    rows = []
    causal = min(times["causal"])
    for name in models:
        token, iteration = min(times[name]), min(iterations[name])
        row = {"model": name, "length": length, "sequential_ms": token, "causal_ms": causal, "ratio": token / causal,
               "iteration_ms": iteration, "acceptance": acceptance_to_match(iteration, causal, K)}  # fmt: skip
        rows.append(row)
        show(*row.values())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny-text", "gpt2-base", "xlnet-base"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--reference_nfe", type=int, default=16, help="evaluations of the reference to time")
    parser.add_argument("--batch", type=int, default=8, help="batch of the second table")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the third table; the fastest counts")
    parser.add_argument("--tables", nargs="+", default=["reference", "batch", "causal"])
    parser.add_argument("--roofline", action="store_true", help="compare with the bandwidth of this machine instead")
    parser.add_argument("--device", default="auto", help="of --roofline")
    parser.add_argument("--dtype", default="float32", help="of --roofline")
    parser.add_argument("--compile", default="auto", help="of --roofline: auto, on or off, as for all commands")
    parser.add_argument("--output", help="also write the numbers to this JSON file")
    arguments = parser.parse_args()
    start, numbers = time.time(), {}
    models = {name: make_model(name) for name in arguments.models}
    if arguments.roofline:
        device = pick_device(arguments.device)
        models = {name: model.to(device, pick_dtype(arguments.dtype, device)) for name, model in models.items()}
        length = arguments.lengths[0]
        numbers["roofline"] = compare_with_bandwidth(
            models,
            lambda model: random_batch(length, masked(length), model.config.vocab_size),
            causal_ms(length, device, pick_dtype(arguments.dtype, device)),
            arguments.rounds,
            arguments.compile,
            show,
        )
        finish(arguments, numbers, start, device)
        return
    base = {name: model for name, model in models.items() if name.endswith("-base")}
    longest = max(arguments.lengths)
    if "reference" in arguments.tables:
        numbers["reference"] = compare_with_reference(models, arguments.lengths, arguments.reference_nfe)
        print()
    if "batch" in arguments.tables:
        numbers["batch"] = compare_batches(base, longest, arguments.batch)
        print()
    if "causal" in arguments.tables:
        numbers["causal"] = compare_with_causal(base, longest, arguments.rounds)
        print()
    finish(arguments, numbers, start, torch.device("cpu"))


def finish(arguments: argparse.Namespace, numbers: dict, start: float, device: torch.device) -> None:
    """Say where and how long it ran, and write the numbers."""
    where = provenance(device)["device"]
    print(f"\n{where}, {torch.get_num_threads()} threads, {time.time() - start:.0f} s in all")
    if arguments.output:
        write_json(arguments.output, numbers | provenance(device))


if __name__ == "__main__":
    main()
