"""The loss curve of a training run, from its result files."""

from pathlib import Path

import matplotlib.pyplot as plt

from asarm.utils.jsonl import read_json_lines
from asarm.utils.plotting import save_figure


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
    return save_figure(figure, folder / "curve.png")
