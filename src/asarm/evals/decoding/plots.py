"""Plots of the decoding evaluation, from its result files."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from asarm.evals.decoding.metrics import SWEPT, by_model_and_length, by_variant, prefixes
from asarm.evals.plots import COLOURS
from asarm.evals.stats import BASELINE
from asarm.utils.jsonl import read_json_lines
from asarm.utils.plotting import save_figure

HISTOGRAMS = {"nfe": "NFE a text", "gen_ppl": "generative perplexity", "entropy": "entropy of the tokens, bits"}
CURVES = {"nfe_per_target": "NFE a target", "seconds": "seconds a text", "perplexity": "generative perplexity",
          "entropy": "entropy of the tokens, bits"}  # fmt: skip
X_LABELS = {"k": "k, tokens drafted at once", "tolerance": "tolerance"}
MARKERS = "osD^vPX*"


def plot_decoding(folder: str | Path) -> list[Path]:
    """Histograms by variant, from samples.jsonl; and if there was a sweep, costs and quality against k or the
    tolerance, from metrics.json. Returns the paths of the figures."""
    folder = Path(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    groups = by_model_and_length(read_json_lines(folder / "samples.jsonl"))
    panels = {prefixes(list(groups))[group].strip(): samples for group, samples in groups.items()}
    paths = [_histograms(folder / f"{key}.png", key, label, panels) for key, label in HISTOGRAMS.items()]
    sequential = [one for one in metrics["variants"].values() if one["variant"] == BASELINE]
    for swept in SWEPT:
        if curves := metrics[f"{swept}_sweep"]:
            paths.append(_sweep(folder / f"{swept}_sweep.png", swept, curves, sequential))
    return paths


def _histograms(path: Path, key: str, label: str, panels: dict[str, list[dict]]) -> Path:
    """Overlaid histograms with common bins, the mean of each as a dashed line; a panel for each model and length. The
    runs of the sweeps are left to the other plots."""
    figure, grid = plt.subplots(len(panels), figsize=(7, 1.5 + 3 * len(panels)), layout="constrained", squeeze=False)
    for axes, (title, samples) in zip(grid[:, 0], panels.items(), strict=True):
        main = [sample for sample in samples if sample["variant"] == sample["sampler"]]
        values = {name: [one[key] for one in rows.values()] for name, rows in by_variant(main).items()}
        bins = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=20)
        for name, numbers in values.items():
            colour = COLOURS[name]
            axes.hist(numbers, bins=bins, alpha=0.3, color=colour, label=f"{name} (n = {len(numbers)})")
            axes.hist(numbers, bins=bins, histtype="step", color=colour, linewidth=1.5)
            axes.axvline(np.mean(numbers), color=colour, linestyle="--", linewidth=1)
        axes.set(xlabel=label, ylabel="texts", title=title)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return save_figure(figure, path)


def _sweep(path: Path, swept: str, curves: dict[str, list[dict]], sequential: list[dict]) -> Path:
    """Means with their standard errors: a panel for each measure, a curve for each sampler, length and model. Dashed:
    sequential decoding of all texts."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    for axes, (key, measure) in zip(grid.flat, CURVES.items(), strict=True):
        for number, (name, points) in enumerate(curves.items()):
            shown = [point for point in points if point[key] is not None]
            axes.errorbar(
                [point[swept] for point in shown],
                [point[key]["mean"] for point in shown],
                [point[key]["se"] or 0.0 for point in shown],
                marker=MARKERS[number % len(MARKERS)], markersize=4, capsize=3, color=f"C{number % 10}", label=name,
            )  # fmt: skip
        for number, one in enumerate(sequential):
            label = "_" if number else BASELINE  # one entry of the legend for all
            axes.axhline(one[key]["mean"], color="grey", linestyle="--", linewidth=1, label=label)
        axes.set(xlabel=X_LABELS[swept], ylabel=measure)
        if swept == "tolerance":
            axes.set_xscale("symlog", linthresh=1e-4, linscale=0.5)
            axes.set_xlim(-5e-5, 1.5 * max(point[swept] for points in curves.values() for point in points))
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    lines = grid[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=min(3, len(curves)))
    return save_figure(figure, path)
