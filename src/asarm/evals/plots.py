"""Plots that evaluations share, made from result files only."""

from pathlib import Path

import matplotlib.pyplot as plt

from asarm.utils.plotting import save_figure

COLOURS = {
    "sequential": "C0", "assd-self": "C1", "assd-ngram": "C2", "parallel": "C3", "fused": "C4", "fused-blind": "C5",
    "fused-adaptive": "C6", "assd-adaptive": "C8",
}  # fmt: skip


def plot_intervals(path: Path, found: list[dict], rows: str, labels: dict[str, str], factor: float = 1.0) -> Path:
    """Means and intervals of variants: a row of panels for each value of the field `rows`, a panel for each measure
    (labels: {its field: the axis label}). Fields that a variant does not have are left out."""
    groups, models, names = ([*dict.fromkeys(one[key] for one in found)] for key in (rows, "model", "variant"))
    size = (max(11, 3.5 * len(labels)), 1.2 + len(groups) * (0.8 + 0.3 * len(names)))
    figure, grid = plt.subplots(
        len(groups), len(labels), figsize=size, layout="constrained", sharey=True, squeeze=False
    )
    for row, group in zip(grid, groups, strict=True):
        for axes, (key, label) in zip(row, labels.items(), strict=True):
            for one in (one for one in found if one[rows] == group and key in one):
                number, mean = models.index(one["model"]), factor * one[key]["mean"]
                low, high = [factor * end for end in one[key]["interval_95"] or [one[key]["mean"]] * 2]
                axes.errorbar(
                    mean, names.index(one["variant"]) + 0.15 * (number - (len(models) - 1) / 2),
                    xerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],
                    marker="o", capsize=3, color=f"C{number}",
                )  # fmt: skip
            axes.set(xlabel=label, title=group, yticks=range(len(names)), yticklabels=names)
            axes.grid(alpha=0.3)
    grid[0, 0].invert_yaxis()  # shared by all
    points = [plt.Line2D([], [], color=f"C{number}", marker="o", label=name) for number, name in enumerate(models)]
    figure.legend(handles=points, loc="outside lower center", ncols=len(models))
    return save_figure(figure, path)
