"""PNG plots, made from result files only."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from asarm.evals.code_stats import rates_of
from asarm.evals.rouge import MEASURES
from asarm.files import read_json_lines

COLOURS = {
    "sequential": "C0", "assd-self": "C1", "assd-ngram": "C2", "parallel": "C3", "fused": "C4", "fused-blind": "C5",
    "fused-adaptive": "C6",
}  # fmt: skip


def plot_training(folder: str | Path) -> Path:
    """Loss and held-out NLL against the step and, if there was decoding, what it cost: `curve.png`, from
    metrics.jsonl."""
    folder = Path(folder)
    lines = read_json_lines(folder / "metrics.jsonl")

    def draw(axes, key: str, label: str, **style) -> None:
        points = [(line["step"], line[key]) for line in lines if line.get(key)]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)

    decoded = any("assd_nfe_per_token" in line for line in lines)
    figure, panels = plt.subplots(
        1 + decoded, figsize=(7, 6.5 if decoded else 4.5), layout="constrained", sharex=True, squeeze=False,
        height_ratios=[2, 1][: 1 + decoded],
    )  # fmt: skip
    losses, costs = panels[0, 0], panels[-1, 0]
    for key, label in (("joint", "training, joint loss"), ("draft", "training, draft loss")):
        draw(losses, key, label, alpha=0.5, linewidth=1)
    for key in sorted({key for line in lines for key in line if key.startswith("nll_")}):
        draw(losses, key, f"held out, {key.removeprefix('nll_')} masked", marker="o")
    losses.set(ylabel="nats a token", title=folder.name)
    if decoded:
        draw(costs, "assd_nfe_per_token", "NFE a token", marker="o")
        draw(costs, "assd_acceptance", "drafts accepted", marker="o")
        costs.set(ylabel="ASSD, held out", ylim=(0, 1.05))
    costs.set(xlabel="step")
    for axes in panels[:, 0]:
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        axes.grid(alpha=0.3)
    return _saved(figure, folder / "curve.png")


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
    return _saved(figure, path)


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
    return _saved(figure, path)


def plot_stories(folder: str | Path) -> Path:
    """Mean ROUGE and its interval by task, variant and model, from metrics.json: `rouge.png`."""
    folder = Path(folder)
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["variants"]
    labels = {key: f"{label}, F1 x 100" for key, label in MEASURES.items()}
    return _intervals(folder / "rouge.png", found, "task", labels)


def plot_code(folder: str | Path) -> Path:
    """Shares of completions and their intervals by split, variant and model, from metrics.json: `code.png`."""
    folder = Path(folder)
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["variants"]
    labels = {key: f"{key}, %" for key in rates_of(found)} | {"exact": "exact match, %", "syntax": "valid syntax, %"}
    return _intervals(folder / "code.png", found, "split", labels, 100.0)


def _intervals(path: Path, found: list[dict], rows: str, labels: dict[str, str], factor: float = 1.0) -> Path:
    """Means and intervals of variants: a row of panels for each value of the field `rows`, a panel for each measure
    (labels: {its field: what stands below}). Fields that a variant lacks are left out."""
    groups, models, names = ([*dict.fromkeys(one[key] for one in found)] for key in (rows, "model", "variant"))
    size = (max(11, 3.5 * len(labels)), 1.2 + len(groups) * (0.8 + 0.3 * len(names)))
    figure, grid = plt.subplots(
        len(groups), len(labels), figsize=size, layout="constrained", sharey=True, squeeze=False
    )
    for row, group in zip(grid, groups, strict=True):
        for axes, (key, label) in zip(row, labels.items(), strict=True):
            for one in (one for one in found if one[rows] == group and key in one):
                place, mean = models.index(one["model"]), factor * one[key]["mean"]
                low, high = [factor * end for end in one[key]["interval_95"] or [one[key]["mean"]] * 2]
                axes.errorbar(
                    mean, names.index(one["variant"]) + 0.15 * (place - (len(models) - 1) / 2),
                    xerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],
                    marker="o", capsize=3, color=f"C{place}",
                )  # fmt: skip
            axes.set(xlabel=label, title=group, yticks=range(len(names)), yticklabels=names)
            axes.grid(alpha=0.3)
    grid[0, 0].invert_yaxis()  # shared by all
    points = [plt.Line2D([], [], color=f"C{place}", marker="o", label=name) for place, name in enumerate(models)]
    figure.legend(handles=points, loc="outside lower center", ncols=len(models))
    return _saved(figure, path)


def _saved(figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
