"""Tables and plots of the decoding evaluation."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from asarm.evals.decoding.metrics import MARGINS
from asarm.evals.plots import COLOURS
from asarm.evals.stats import BASELINE
from asarm.evals.tables import aligned_table, markdown_table, p_text, plus_minus, stated, too_few
from asarm.utils.jsonl import read_json_lines
from asarm.utils.plotting import save_figure


def table(metrics: dict) -> str:
    """All metrics as Markdown. Mean ± standard error over texts; seconds over batches."""
    variants, comparisons = _main_variants(metrics), _main_comparisons(metrics)
    drafting = {name: one["acceptance"] for name, one in variants.items() if one["acceptance"]}
    parts = [_variant_table(variants)]
    parts += _comparison_table(comparisons) if comparisons else []
    parts += _acceptance_table(drafting) if drafting else []
    parts += _sweep_table(metrics["k_sweep"]) if metrics["k_sweep"] else []
    return "\n".join(parts)


def summary(metrics: dict) -> str:
    """What is printed at the end: the costs of the variants, and a line on each comparison with sequential decoding."""
    variants = _main_variants(metrics)
    rows = [
        [
            name,
            f"{one['nfe']['mean']:.1f}",
            f"{one['tokens_per_nfe']['mean']:.2f}",
            f"{one['seconds']['mean']:.3f}",
            f"{one['perplexity']['mean']:.1f}",
            f"{one['entropy']['mean']:.2f}",
        ]
        for name, one in variants.items()
    ]
    count = next(iter(variants.values()))["nfe"]["n"]
    header = ["variant", "NFE", "tokens per NFE", "seconds a text", "generative perplexity", "entropy"]
    parts = [f"{count} texts\n", aligned_table(header, rows)]
    if few := too_few(count, "texts"):
        return "\n".join([*parts, few])
    return "\n".join([*parts, *(_comparison_line(name, one) for name, one in _main_comparisons(metrics).items())])


def _main_variants(metrics: dict) -> dict[str, dict]:
    """Without the runs of the sweep over k, which have names of their own and a table of their own."""
    return {name: one for name, one in metrics["variants"].items() if name == one["sampler"]}


def _main_comparisons(metrics: dict) -> dict[str, dict]:
    main = _main_variants(metrics)
    return {name: one for name, one in metrics[f"against_{BASELINE}"].items() if name in main}


def _comparison_line(name: str, one: dict) -> str:
    return (
        f"{name} against {BASELINE}: {one['nfe']['difference']:+.1f} NFE and {one['seconds']['speedup']:.2f} times as "
        f"fast; log perplexity {stated(one['gen_nll'], 3)}; entropy {stated(one['entropy'], 3)}"
    )


def _variant_table(variants: dict[str, dict]) -> str:
    header = ["variant", "texts", "NFE", "tokens per NFE", "seconds a text", "generative perplexity", "entropy, bits"]
    rows = [
        [
            name,
            str(one["nfe"]["n"]),
            plus_minus(one["nfe"], 1),
            plus_minus(one["tokens_per_nfe"], 3),
            plus_minus(one["seconds"], 3),
            plus_minus(one["perplexity"], 1),
            plus_minus(one["entropy"], 3),
        ]
        for name, one in variants.items()
    ]
    return markdown_table(header, rows)


def _comparison_table(comparisons: dict[str, dict]) -> list[str]:
    count = next(iter(comparisons.values()))["nfe"]["n"]
    if few := too_few(count, "texts"):
        return [few + "\n"]
    margins = ", ".join(f"{name} ± {margin:.3f}" for name, margin in MARGINS.items())
    about = (
        f"Against {BASELINE}, paired by text (time: by batch): t-test p, 95 % intervals, and whether the two are "
        f"the same up to a margin (two one-sided tests at 0.05; margins: {margins}).\n"
    )
    rows = [
        [
            name,
            f"{one['nfe']['difference']:+.1f}, {p_text(one['nfe']['t_test_p'])}",
            f"{one['seconds']['speedup']:.2f}, {p_text(one['seconds']['t_test_p'])}",
            stated(one["gen_nll"], 3),
            stated(one["entropy"], 3),
        ]
        for name, one in comparisons.items()
    ]
    return [about, markdown_table(["variant", "NFE", "times as fast", "log perplexity", "entropy"], rows)]


def _acceptance_table(drafting: dict[str, list[float | None]]) -> list[str]:
    width = max(map(len, drafting.values()))
    rows = [
        [name, *("-" if share is None else f"{share:.3f}" for share in shares), *[""] * (width - len(shares))]
        for name, shares in drafting.items()
    ]
    table = markdown_table(["variant", *map(str, range(1, width + 1))], rows)
    return ["Share of verified drafts that were accepted, by index in the window.\n", table]


def _sweep_table(sweep: dict[str, list[dict]]) -> list[str]:
    points = next(iter(sweep.values()))
    rows = [[name, *(plus_minus(point, 1) for point in curve)] for name, curve in sweep.items()]
    table = markdown_table(["variant", *(f"k = {point['k']}" for point in points)], rows)
    return [f"NFE a text by k, on {points[0]['n']} of the texts.\n", table]


def plot_decoding(folder: str | Path) -> list[Path]:
    """Histograms by variant, from samples.jsonl, and NFE against k, if there was a sweep, from metrics.json."""
    folder = Path(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    samples = read_json_lines(folder / "samples.jsonl")
    # Runs of a sweep over k are left to the other plot.
    groups = {name: [s for s in samples if s["variant"] == name == s["sampler"]] for name in metrics["variants"]}
    groups = {name: group for name, group in groups.items() if group}
    paths = [
        _histograms(folder / f"{key}.png", key, label, groups)
        for key, label in (
            ("nfe", "NFE a text"),
            ("gen_ppl", "generative perplexity"),
            ("entropy", "entropy of the tokens, bits"),
        )
    ]
    if metrics["k_sweep"]:
        paths.append(_nfe_by_k(folder / "nfe_by_k.png", metrics["k_sweep"]))
    return paths


def _histograms(path: Path, key: str, label: str, groups: dict[str, list[dict]]) -> Path:
    """Overlaid histograms with common bins; the mean of each as a dashed line."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    values = {name: [sample[key] for sample in group] for name, group in groups.items()}
    bins = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=20)
    for name, numbers in values.items():
        colour = COLOURS[name]
        axes.hist(numbers, bins=bins, alpha=0.3, color=colour, label=f"{name} (n = {len(numbers)})")
        axes.hist(numbers, bins=bins, histtype="step", color=colour, linewidth=1.5)
        axes.axvline(np.mean(numbers), color=colour, linestyle="--", linewidth=1)
    axes.set(xlabel=label, ylabel="texts")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return save_figure(figure, path)


def _nfe_by_k(path: Path, curves: dict[str, list[dict]]) -> Path:
    """Mean NFE a text, with its standard error, against the number of tokens drafted at once."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in curves.items():
        errors = [point["se"] or 0.0 for point in points]
        label = f"{name} (n = {points[0]['n']})"
        ks, means = [point["k"] for point in points], [point["mean"] for point in points]
        axes.errorbar(ks, means, errors, marker="o", capsize=3, color=COLOURS[name], label=label)
    axes.set(xlabel="k, tokens drafted at once", ylabel="NFE a text")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    axes.grid(alpha=0.3)
    return save_figure(figure, path)
