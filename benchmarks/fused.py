"""What each part of `fused` brings, on sequences and gaps of the evaluations: one table in one run, and its plots.

    python benchmarks/fused.py [--text_models tiny-text] [--code_models tiny-code] [--texts 8] [--gaps 60]

Every sequence is decoded alone by every variant in turn, so that a machine that slows down slows all. The table is
printed as Markdown; the plots go to --plots (the folder docs), all numbers to --output. WikiText, stories and problems
are read from the files named; without a name the small ones of eval_datasets are used.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from asarm.data.packed import pack
from asarm.data.readers import read_text
from asarm.evals.code import data as code_data
from asarm.evals.code import examples as code_examples
from asarm.evals.infilling.example import InfillExample, truncate_context
from asarm.evals.infilling.infill import infill_batch
from asarm.evals.stories import data as story_data
from asarm.models.load import bundled_names, load_on_device
from asarm.objective.loss import log_prob
from asarm.objective.masking import random_targets
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.utils.files import write_json
from asarm.utils.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ROOT / "src/asarm/eval_datasets"

ASSD = SamplerConfig(draft="blind", k=5)  # the paper's, without a draft head
FUSED = SamplerConfig(sampler="fused", draft="blind", k=4)
BLOCK = replace(FUSED, coupling="block")
HEAD = replace(BLOCK, draft="self")
ALTERNATIVES = replace(HEAD, alternatives=2)
ADAPTIVE = replace(HEAD, adaptive=True, coupling="gumbel", k=8)
VARIANTS = {
    "sequential": SamplerConfig(sampler="sequential"),
    "assd self, k=5": ASSD,
    "assd ngram, k=5": replace(ASSD, draft="ngram"),
    "fused, k=4": FUSED,
    "+ block verification": BLOCK,
    "+ draft head": HEAD,
    "+ alternatives": ALTERNATIVES,
    "the last, gumbel": replace(ALTERNATIVES, coupling="gumbel"),
    "+ adaptive": ADAPTIVE,
}
SWEPT = {"assd self": ASSD, "fused": FUSED, "+ block verification": BLOCK, "+ draft head": HEAD}
TIMED = {"sequential": VARIANTS["sequential"], "assd self, k=5": ASSD, "fused, adaptive": ADAPTIVE}


@dataclass
class Task:
    """Sequences to decode. name: what and how much is masked."""

    name: str
    sequences: list[InfillBatch]  # of one sequence each


@dataclass
class Outcome:
    """What a variant did to the sequences of a task, one by one. nll: nats a token under the model's exact joint."""

    targets: torch.Tensor
    nfe: torch.Tensor
    seconds: torch.Tensor
    nll: torch.Tensor
    proposed: torch.Tensor
    accepted: torch.Tensor

    @property
    def tokens_per_nfe(self) -> float:
        return float(self.targets.sum() / self.nfe.sum())

    @property
    def error(self) -> float:
        """Standard error of tokens per NFE, a ratio of two means over sequences."""
        rest = self.targets - self.tokens_per_nfe * self.nfe
        return float(rest.std() / self.nfe.mean() / len(rest) ** 0.5)

    def as_row(self) -> dict:
        shares = (self.accepted / self.proposed)[self.proposed > 0]
        return {
            "tokens_per_nfe": self.tokens_per_nfe, "error": self.error, "nfe": float(self.nfe.mean()),
            "targets": float(self.targets.mean()), "seconds": float(self.seconds.mean()), "nll": float(self.nll.mean()),
            "acceptance": [float(share) for share in shares],
        }  # fmt: skip


def packed_task(name: str, codec, path: Path, length: int, count: int, rate: float) -> Task:
    """Packed sequences with a share of their tokens masked at random."""
    blocks = torch.from_numpy(pack([codec.encode(read_text(path))], codec.eos_token_id, length)).long()
    generator = torch.Generator().manual_seed(0)
    tokens = blocks[torch.randperm(len(blocks), generator=generator)[:count]]
    target = random_targets(tokens, rate, generator)
    rows = zip(tokens.split(1), target.split(1), strict=True)
    return Task(f"{name}, {100 * rate:.0f} % masked", [InfillBatch(row, ~masked, masked) for row, masked in rows])


def gap_batch(gap: InfillExample, longest: int) -> InfillBatch:
    """An example as a batch of one sequence with a gap."""
    gap = truncate_context(gap, len(gap.reference_tokens), longest)
    return infill_batch([gap], [gap.reference_tokens], torch.device("cpu"))


def gap_task(name: str, gaps: list[InfillExample], count: int, longest: int) -> Task:
    """Some of the gaps, evenly spread."""
    step = max(1, len(gaps) // count)
    return Task(
        name, [gap_batch(gap, longest) for gap in gaps[::step][:count] if 0 < len(gap.reference_tokens) < longest]
    )


def text_tasks(codec, longest: int, arguments) -> list[Task]:
    stories = story_data.read_stories(arguments.stories)
    return [
        *(packed_task("prose", codec, arguments.text, arguments.length, arguments.texts, rate) for rate in (0.95, 0.5)),
        *(
            gap_task(
                f"stories {task}", [story_data.make_example(s, task, codec) for s in stories], arguments.gaps, longest
            )
            for task in story_data.TASKS
        ),
    ]


def code_tasks(codec, longest: int, arguments) -> list[Task]:
    problems = code_data.read_problems(arguments.code)
    gaps = [code_examples.make_example(problem, "single-line", codec) for problem in problems]
    return [gap_task("code, single line", gaps, arguments.gaps, longest)]


def one_gap(codec, path: Path, length: int, size: int, count: int) -> Task:
    """Packed sequences, each with one gap of `size` tokens in its middle."""
    task = packed_task("", codec, path, length, count, 0.5)
    offset = torch.arange(length)[None] - (length - size) // 2
    target = (offset >= 0) & (offset < size)
    return Task(f"gap of {size}", [InfillBatch(tokens, ~target, target) for tokens, _, _ in task.sequences])


def decode(model, task: Task, variants: dict[str, SamplerConfig]) -> dict[str, Outcome]:
    """Every sequence by every variant, which take turns; each is warmed up on the end of the first sequence."""
    tokens, given, target = task.sequences[0]
    last = target & (target.flip(1).cumsum(1).flip(1) <= 12)
    for config in variants.values():
        sample(model, tokens, ~last & (given | target), last, config, [0])
    rows = {name: [] for name in variants}
    for index, (tokens, given, target) in enumerate(task.sequences):
        names = list(variants)
        for name in names[index % len(names) :] + names[: index % len(names)]:
            result = sample(model, tokens, given, target, variants[name], [index])
            nll = -log_prob(model, result.tokens, given, target).sum() / target.sum()
            rows[name].append((result, result.seconds, nll))
    return {
        name: Outcome(
            targets=torch.cat([result.targets for result, _, _ in some]).double(),
            nfe=torch.cat([result.nfe for result, _, _ in some]).double(),
            seconds=torch.tensor([seconds for _, seconds, _ in some], dtype=torch.float64),
            nll=torch.tensor([nll for _, _, nll in some], dtype=torch.float64),
            proposed=torch.cat([result.proposed for result, _, _ in some]).sum(0).double(),
            accepted=torch.cat([result.accepted for result, _, _ in some]).sum(0).double(),
        )
        for name, some in rows.items()
    }


def parallel_at(nfe: float) -> dict[str, SamplerConfig]:
    """The sampler that is not exact, at about that many evaluations."""
    steps = max(1, round(nfe))
    return {f"parallel, {steps} steps": SamplerConfig(sampler="parallel", steps=steps)}


@torch.inference_mode()
def causal_seconds(model, task: Task, rounds: int = 3) -> float:
    """Seconds a sequence of a left-to-right GPT-2 of the model's shape (random weights) with its cache: the prefix is
    read, then as many tokens as the sequence has targets are sampled."""
    config = model.config
    shape = {"n_embd": config.n_embd, "n_layer": config.n_layer, "n_head": config.n_head}
    causal = GPT2LMHeadModel(GPT2Config(vocab_size=config.vocab_size, n_positions=1024, **shape)).eval()
    options = {"do_sample": True, "top_k": 0, "pad_token_id": 0, "eos_token_id": None}
    seconds = []
    for tokens, _, target in task.sequences[:rounds]:
        prompt = tokens[:, : max(1, int(target[0].long().argmax()))]
        causal.generate(prompt, max_new_tokens=2, **options)
        start = time.perf_counter()
        causal.generate(prompt, max_new_tokens=int(target.sum()), **options)
        seconds.append(time.perf_counter() - start)
    return sum(seconds) / len(seconds)


def show(*cells) -> None:
    """One row of a Markdown table."""
    print("| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |", flush=True)


def show_task(name: str, task: Task, outcomes: dict[str, Outcome], causal: float | None) -> list[dict]:
    """The rows of one task."""
    base, rows = outcomes["sequential"], []
    for variant, outcome in outcomes.items():
        row = {"model": name, "task": task.name, "variant": variant, "exact": not variant.startswith("parallel")}
        row |= outcome.as_row() | {"times_as_fast": float(base.seconds.sum() / outcome.seconds.sum())}
        rows.append(row)
        show(
            name, task.name, variant, "yes" if row["exact"] else "**no**",
            f"{row['tokens_per_nfe']:.2f} ± {row['error']:.2f}", f"{row['nfe']:.1f}", f"{row['seconds']:.3f}",
            f"{row['times_as_fast']:.2f}", f"{row['nll']:.2f}",
            " ".join(f"{100 * share:.0f}" for share in row["acceptance"]),
        )  # fmt: skip
    if causal:
        rows.append({"model": name, "task": task.name, "variant": "causal", "seconds": causal})
        ratio = f"{float(base.seconds.mean()) / causal:.2f}"
        show(name, task.name, "left to right, same shape", "-", "1.00", None, f"{causal:.3f}", ratio, None, None)
    return rows


def compare(models: dict, tasks_of: dict[str, list[Task]], causal: bool) -> list[dict]:
    """The table: each part of fused added in turn."""
    show("model", "texts", "variant", "exact", "tokens per NFE", "NFE", "s a text", "times as fast", "NLL",
         "% accepted, by index")  # fmt: skip
    show("---", "---", "---", "---", *["---:"] * 5, "---")
    rows = []
    for name, model in models.items():
        for task in tasks_of[name]:
            outcomes = decode(model, task, VARIANTS)
            nfe = float(outcomes["+ draft head"].nfe.mean())
            outcomes |= decode(model, task, parallel_at(nfe))
            left_to_right = causal and hasattr(model.config, "n_embd")
            rows += show_task(name, task, outcomes, causal_seconds(model, task) if left_to_right else None)
    return rows


def axes_of(count: int, title: Callable[[int], str], **labels) -> tuple[plt.Figure, list[plt.Axes]]:
    """A row of panels with titles and the same labels."""
    figure, panels = plt.subplots(1, count, figsize=(1 + 3.2 * count, 3.6), layout="constrained", squeeze=False)
    for index, axes in enumerate(panels[0]):
        axes.set(title=title(index), **labels)
        axes.grid(alpha=0.3)
    return figure, list(panels[0])


def plot_k(model, tasks: list[Task], ks: list[int], path: Path) -> list[dict]:
    """Tokens per NFE against k, a panel a task; and a table of the fastest k beside the adaptive one."""
    print()
    show("texts", "fastest k", "s a text", "adaptive, s a text", "ratio")
    show("---", "---:", "---:", "---:", "---:")
    figure, panels = axes_of(len(tasks), lambda index: tasks[index].name, xlabel="k", ylabel="tokens per NFE")
    rows = []
    for task, axes in zip(tasks, panels, strict=True):
        variants = {f"{name} {k}": replace(config, k=k) for name, config in SWEPT.items() for k in ks}
        outcomes = decode(model, task, variants | {"adaptive": ADAPTIVE})
        seconds = {k: float(outcomes[f"+ draft head {k}"].seconds.mean()) for k in ks}
        best, adaptive = min(seconds, key=seconds.get), float(outcomes["adaptive"].seconds.mean())
        show(task.name, best, f"{seconds[best]:.4f}", f"{adaptive:.4f}", f"{adaptive / seconds[best]:.3f}")
        rows.append({"task": task.name, "variant": "adaptive", "seconds": adaptive, "fixed": seconds})
        for name in SWEPT:
            values = [outcomes[f"{name} {k}"].tokens_per_nfe for k in ks]
            errors = [outcomes[f"{name} {k}"].error for k in ks]
            axes.errorbar(ks, values, errors, marker="o", label=name)
            rows.append({"task": task.name, "variant": name, "k": ks, "tokens_per_nfe": values})
        axes.axhline(1, color="grey", linewidth=1)
    panels[0].legend()
    figure.savefig(path, dpi=110)
    return rows


def plot_gaps(model, codec, arguments, path: Path) -> list[dict]:
    """Wall time against the size of one gap."""
    sizes = [size for size in (4, 8, 16, 32, 64, 128) if size < arguments.length]
    figure, (axes,) = axes_of(
        1, lambda _: "one gap in the middle, batch 1", xlabel="tokens of the gap", ylabel="seconds"
    )
    rows = []
    outcomes = {
        size: decode(model, one_gap(codec, arguments.text, arguments.length, size, arguments.texts), TIMED)
        for size in sizes
    }
    for name in TIMED:
        seconds = [float(outcomes[size][name].seconds.mean()) for size in sizes]
        axes.plot(sizes, seconds, marker="o", label=name)
        rows.append({"variant": name, "sizes": sizes, "seconds": seconds})
    axes.set(xscale="log", yscale="log", xticks=sizes, xticklabels=sizes)
    axes.legend()
    figure.set_size_inches(6, 4)
    figure.savefig(path, dpi=110)
    return rows


def plot_quality(model, tasks: list[Task], path: Path) -> list[dict]:
    """NLL under the exact joint against NFE: the parallel sampler's curve beside the exact samplers' points."""
    figure, panels = axes_of(
        len(tasks), lambda index: tasks[index].name, xlabel="NFE a text", ylabel="nats a token, exact joint"
    )
    rows = []
    for task, axes in zip(tasks, panels, strict=True):
        steps = [2**power for power in range(9) if 2**power <= float(task.sequences[0][2].sum())]
        parallel = {str(count): SamplerConfig(sampler="parallel", steps=count) for count in steps}
        exact = {name: VARIANTS[name] for name in ("sequential", "assd self, k=5", "+ draft head")}
        outcomes = decode(model, task, parallel | exact)

        def points(names: list[str], outcomes=outcomes) -> tuple[list[float], list[float]]:
            return [float(outcomes[n].nfe.mean()) for n in names], [float(outcomes[n].nll.mean()) for n in names]

        axes.plot(*points(list(parallel)), marker="o", label="parallel, not exact")
        for name in exact:
            axes.plot(*points([name]), marker="s", linestyle="", label=name)
            rows.append({"task": task.name, "variant": name, "points": points([name])})
        rows.append({"task": task.name, "variant": "parallel", "points": points(list(parallel))})
        axes.set_xscale("log")
    panels[0].legend()
    figure.savefig(path, dpi=110)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bundled = bundled_names()
    parser.add_argument("--text_models", nargs="*", default=[name for name in bundled if "code" not in name])
    parser.add_argument("--code_models", nargs="*", default=[name for name in bundled if "code" in name])
    parser.add_argument("--text", type=Path, default=DATASETS / "sample_text.txt", help="a text file, such as WikiText")
    parser.add_argument("--stories", type=Path, default=DATASETS / "stories.csv")
    parser.add_argument("--code", type=Path, default=DATASETS / "code_single_line.jsonl")
    parser.add_argument("--length", type=int, default=128, help="tokens of a packed sequence")
    parser.add_argument("--texts", type=int, default=8, help="packed sequences of each kind")
    parser.add_argument("--gaps", type=int, default=60, help="stories and problems of each kind")
    parser.add_argument("--k", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8], help="k of the first plot")
    parser.add_argument("--parts", nargs="+", default=["table", "k", "gaps", "quality"])
    parser.add_argument("--plots", type=Path, default=ROOT / "docs")
    parser.add_argument("--output", help="also write the numbers to this JSON file")
    arguments = parser.parse_args()
    start, numbers = time.time(), {}
    models, codecs, tasks = {}, {}, {}
    for make, names in ((text_tasks, arguments.text_models), (code_tasks, arguments.code_models)):
        for name in names:
            models[name], codecs[name] = load_on_device(name, None, "auto", torch.device("cpu"), "auto")
            longest = models[name].config.n_positions
            tasks[name] = make(codecs[name], longest, arguments)
    if "table" in arguments.parts:
        numbers["table"] = compare(models, tasks, causal=True)
    for name, model in models.items():
        if "k" in arguments.parts:
            path = arguments.plots / f"tokens_per_nfe_{Path(name).name}.png"
            numbers[f"k {name}"] = plot_k(model, tasks[name], arguments.k, path)
        if "gaps" in arguments.parts and name in arguments.text_models:
            path = arguments.plots / f"gap_seconds_{Path(name).name}.png"
            numbers[f"gaps {name}"] = plot_gaps(model, codecs[name], arguments, path)
        if "quality" in arguments.parts:
            path = arguments.plots / f"quality_{Path(name).name}.png"
            numbers[f"quality {name}"] = plot_quality(model, tasks[name], path)
    dtypes = ", ".join(f"{name} in {str(model.dtype).removeprefix('torch.')}" for name, model in models.items())
    print(
        f"\n{provenance()['device']}, {torch.get_num_threads()} threads; {dtypes}; {time.time() - start:.0f} s in all"
    )
    if arguments.output:
        write_json(arguments.output, numbers | provenance())


if __name__ == "__main__":
    main()
