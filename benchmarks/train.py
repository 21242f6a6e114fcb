"""Cost of a training step, compared with `transformers`' XLNet (permutation masks) and GPT-2 (left to right).

    python benchmarks/train.py [--rates 0.15 0.6 0.95] [--batch 2] [--rounds 3]

A step is a forward and a backward pass; the optimiser's work, the same for equal numbers of parameters, is left out.
All models have 12 layers x 768 and random weights; dropout is off, so that `asarm xlnet` and `transformers XLNet`,
which share their weights, compute the same loss: that is checked. They have XLNet's vocabulary (32000), the GPT-2s
their own (50258 with the mask token, and 50257). All read the same batch of random tokens.

Time is the median over rounds, in each of which every model takes a step of every rate in turn, after a short warm-up
step. On a shared machine, seconds of CPU with OMP_NUM_THREADS=1 (threads that wait count, too) vary less. Peak memory
is measured in a process of its own: what one step adds at most to weights and gradients, which are allocated before
it. On a CPU that is the growth of the peak resident set (VmHWM), with an allocator that returns freed blocks at
once; on a GPU `torch.cuda.max_memory_allocated`, where products run in bfloat16.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, XLNetConfig, XLNetLMHeadModel

from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.rank_order import rank_order
from asarm.models.xlnet import AnyOrderXLNet, AnyOrderXLNetConfig
from asarm.objective.loss import LossConfig, training_loss
from asarm.objective.masking import random_targets
from asarm.utils.files import write_json
from asarm.utils.provenance import provenance

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.reference import permutation_mask

XLNET = {"vocab_size": 32000, "d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072, "dropout": 0.0}
REFERENCE = "transformers XLNet"
MODELS = ("asarm gpt2", "asarm xlnet", REFERENCE, "transformers GPT-2")
WARM_UP = 16  # tokens of the first step, which is not timed
UNKNOWN = dict.fromkeys(("seconds", "cpu_seconds", "peak", "all"), float("nan"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model(name: str, checkpointing: bool) -> PreTrainedModel:
    """A random model in training mode. Of one seed, the two XLNets have the same weights."""
    torch.manual_seed(0)
    if name == "asarm gpt2":
        model = AnyOrderGPT2(AnyOrderGPT2Config())
    elif name == "transformers GPT-2":
        model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    else:
        model = XLNetLMHeadModel(XLNetConfig(**XLNET))
        if name == "asarm xlnet":
            twin = AnyOrderXLNet(AnyOrderXLNetConfig(**XLNET))
            twin.load_state_dict(model.state_dict())
            model = twin
    if checkpointing and name.startswith("asarm"):
        model.gradient_checkpointing_enable()
    return model.train().to(DEVICE)


def xlnet_loss(model: XLNetLMHeadModel, tokens: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """The joint loss of `training_loss` from `transformers`' XLNet, in position order: masks and one-hot mappings."""
    target = random_targets(tokens, rate, generator).to(tokens.device)
    order = rank_order(~target, target)
    positions = order.order[:, int(order.prompt_length[0]) :]  # [B, S]
    mapping = torch.nn.functional.one_hot(positions, tokens.shape[1]).float()  # [B, S, N]
    mask = permutation_mask(order.order.argsort(1), order.prompt_length, order.length)
    return model(
        tokens, perm_mask=mask, target_mapping=mapping, labels=tokens.gather(1, positions), use_mems=False
    ).loss


def step(name: str, model: PreTrainedModel, tokens: torch.Tensor, rate: float) -> float:
    """The loss, after a forward and a backward pass. Gradients are added up."""
    generator = torch.Generator().manual_seed(1)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
        if name.startswith("asarm"):
            loss = training_loss(model, tokens, rate, LossConfig(), generator).joint
        elif name == REFERENCE:
            loss = xlnet_loss(model, tokens, rate, generator)
        else:
            loss = model(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss.item()


def random_tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, XLNET["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(0)).to(DEVICE)


def resident(field: str) -> int:
    """A field of /proc/self/status (VmRSS, VmHWM) in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def own_peak(arguments: argparse.Namespace) -> dict[str, float]:
    """Peak memory (bytes) of one step above weights and gradients, and with them. For a fresh process."""
    tokens = random_tokens(arguments.batch, arguments.length)
    model = make_model(arguments.memory_of, arguments.gradient_checkpointing)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step(arguments.memory_of, model, tokens[:, :WARM_UP], 0.5)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(arguments.memory_of, model, tokens, arguments.rates[0])
        peak = torch.cuda.max_memory_allocated() - before
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM
        step(arguments.memory_of, model, tokens, arguments.rates[0])
        peak = resident("VmHWM") - before
    held = sum(2 * p.numel() * p.element_size() for p in model.parameters())
    return {"peak": peak, "all": peak + held}


def measure_peak(name: str, rate: float, arguments: argparse.Namespace) -> dict[str, float]:
    """`own_peak` in a process of its own."""
    command = [sys.executable, __file__, "--memory_of", name, "--rates", str(rate), "--batch", str(arguments.batch)]
    command += ["--length", str(arguments.length)]
    command += ["--gradient_checkpointing"] if arguments.gradient_checkpointing else []
    # glibc then maps and unmaps each tensor by itself, so that the resident set holds living tensors only.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if out.returncode:
        raise RuntimeError(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])


def measure_times(arguments: argparse.Namespace) -> dict[tuple[str, float], list[tuple[float, float]]]:
    """Seconds, and those of all CPUs together, of the steps of each model and rate, one a round."""
    tokens = random_tokens(arguments.batch, arguments.length)
    models = {name: make_model(name, arguments.gradient_checkpointing) for name in arguments.models}
    seconds: dict[tuple[str, float], list[tuple[float, float]]] = {(n, r): [] for r in arguments.rates for n in models}
    losses = {}
    for name, model in models.items():
        step(name, model, tokens[:, :WARM_UP], 0.5)
    for round_number in range(arguments.rounds):
        for name, rate in [(n, r) for r in arguments.rates for n in models]:
            models[name].zero_grad()
            start, cpu_start = time.perf_counter(), time.process_time()
            losses[name, rate] = step(name, models[name], tokens, rate)
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds[name, rate].append((time.perf_counter() - start, time.process_time() - cpu_start))
            wall, cpu = seconds[name, rate][-1]
            print(f"round {round_number}, rate {rate}, {name}: {wall:.2f} s, {cpu:.2f} s of CPU", flush=True)
    for rate in arguments.rates:
        if {"asarm xlnet", REFERENCE} <= set(models):
            ours, theirs = losses["asarm xlnet", rate], losses[REFERENCE, rate]
            tolerance = 1e-4 if DEVICE == "cpu" else 1e-2
            if not abs(ours - theirs) <= tolerance * abs(theirs):
                raise RuntimeError(f"losses differ at rate {rate}: asarm xlnet {ours}, {REFERENCE} {theirs}")
            print(f"rate {rate}: loss {ours:.6f} (asarm xlnet), {theirs:.6f} ({REFERENCE})", flush=True)
    return seconds


def table(rows: list[dict]) -> None:
    """Print a Markdown table, with speed and memory also as ratios to the two references at the same rate."""
    print(
        "\n| rate | model | s/step | tokens/s | x XLNet's speed | x GPT-2's time | CPU s | x XLNet's "
        "| peak MB | of XLNet's | with weights and gradients MB | of XLNet's |"
    )
    print("| ---: | --- | " + " | ".join(["---:"] * 10) + " |")
    for row in rows:
        at = {other["model"]: other for other in rows if other["rate"] == row["rate"]}
        xlnet, gpt2 = at.get(REFERENCE, UNKNOWN), at.get("transformers GPT-2", UNKNOWN)
        cells = [
            row["rate"], row["model"], f"{row['seconds']:.2f}", f"{row['tokens_per_second']:.0f}",
            f"{xlnet['seconds'] / row['seconds']:.2f}", f"{row['seconds'] / gpt2['seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}", f"{xlnet['cpu_seconds'] / row['cpu_seconds']:.2f}",
            f"{row['peak'] / 1e6:.0f}", f"{row['peak'] / xlnet['peak']:.2f}",
            f"{row['all'] / 1e6:.0f}", f"{row['all'] / xlnet['all']:.2f}",
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.15, 0.6, 0.95])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--gradient_checkpointing", action="store_true", help="of our models")
    parser.add_argument("--parts", nargs="+", choices=("times", "memory"), default=["times", "memory"])
    parser.add_argument("--output", help="also write the numbers to this JSON file")
    parser.add_argument("--memory_of", choices=MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(own_peak(arguments)))
        return
    seconds = measure_times(arguments) if "times" in arguments.parts else {}
    rows = []
    for rate in arguments.rates:
        for name in arguments.models:
            steps = seconds.get((name, rate), [(float("nan"), float("nan"))])
            wall, cpu = (statistics.median(part) for part in zip(*steps, strict=True))
            row = {"model": name, "rate": rate, "seconds": wall, "cpu_seconds": cpu}
            row["tokens_per_second"] = arguments.batch * arguments.length / wall
            rows.append(UNKNOWN | row | (measure_peak(name, rate, arguments) if "memory" in arguments.parts else {}))
            if "memory" in arguments.parts:
                print(f"rate {rate}, {name}: peak {rows[-1]['peak'] / 1e6:.0f} MB", flush=True)
    table(rows)
    print(f"\n{provenance()['device']}, batch {arguments.batch} x {arguments.length}, {arguments.rounds} rounds")
    if arguments.output:
        write_json(arguments.output, {"rows": rows, "all_seconds": {f"{n} at {r}": s for (n, r), s in seconds.items()}}
                   | provenance())  # fmt: skip


if __name__ == "__main__":
    main()
