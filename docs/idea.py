"""Draw docs/idea.png, the picture in the README, from the package's own orders and contexts: `python docs/idea.py`."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from asarm.models.rank_order import rank_order

WORDS = ["Once", "upon", "a", "time", "a", "fox", "lived", "here"]
GAPS = "01010110"  # 1: to be filled
PROMPT, TARGET, UNSEEN = "#4c78a8", "#f58518", "#eeeeee"


def box(axes: Axes, x: float, y: float, text: str, colour: str, **style: Any) -> None:
    axes.add_patch(Rectangle((x, y), 0.92, 0.8, facecolor=colour, edgecolor="white"))
    axes.text(x + 0.46, y + 0.4, text, ha="center", va="center", fontsize=9, **style)


def draw_orders(axes: Axes, order: list[int], prompt: int) -> None:
    """The sequence in position order above, the same tokens gathered into rank order below."""
    count = len(WORDS)
    for position, word in enumerate(WORDS):
        gap = GAPS[position] == "1"
        box(axes, position, 2.2, "___" if gap else word, TARGET if gap else PROMPT, color="white")
        axes.text(position + 0.46, 3.12, str(position), ha="center", fontsize=8, color="grey")
    for rank in range(count):
        position = order[rank]
        colour = PROMPT if rank < prompt else TARGET
        axes.plot([position + 0.46, rank + 0.46], [2.15, 1.05], color=colour, linewidth=1.2, alpha=0.7)
        box(axes, rank, 0.2, WORDS[position] if rank < prompt else f"pos {position}", colour, color="white")
        axes.text(rank + 0.46, -0.1, str(rank), ha="center", fontsize=8, color="grey")
    axes.text(-0.2, 2.6, "text,\nby position", ha="right", va="center", fontsize=9)
    axes.text(-0.2, 0.6, "network,\nby rank", ha="right", va="center", fontsize=9)
    axes.set(xlim=(-2, count), ylim=(-0.4, 3.5))
    axes.set_title("Tokens are gathered into rank order: prompt first, then the gaps", fontsize=10)
    axes.axis("off")


def draw_mask(axes: Axes, title: str, rows: list[tuple[str, int]], columns: int, prompt: int) -> None:
    """rows: (label, context) pairs; a row sees its first `context` ranks."""
    for index, (_, context) in enumerate(rows):
        for rank in range(columns):
            colour = UNSEEN if rank >= context else PROMPT if rank < prompt else TARGET
            axes.add_patch(Rectangle((rank, -index - 1), 0.92, 0.86, facecolor=colour))
    axes.set_yticks([-index - 0.55 for index in range(len(rows))], [label for label, _ in rows], fontsize=8)
    axes.set_xticks([rank + 0.46 for rank in range(columns)], range(columns), fontsize=8)
    axes.tick_params(length=0)
    axes.set(xlim=(-0.1, columns), ylim=(-len(rows) - 0.2, 0.2), xlabel="rank that is seen")
    axes.set_title(title, fontsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)


def main() -> None:
    target = torch.tensor([[letter == "1" for letter in GAPS]])
    order = rank_order(~target, target)
    prompt, total = int(order.prompt_length), int(order.length)
    content = order.content_context()[0].tolist()
    figure = plt.figure(figsize=(11, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=[1, 1.25])
    draw_orders(figure.add_subplot(grid[0, :]), order.order[0].tolist(), prompt)
    draw_mask(
        figure.add_subplot(grid[1, 0]),
        "Content stream: a prefix-LM mask,\nso its keys and values can be kept",
        [(f"token {rank}", content[rank]) for rank in range(total)],
        total,
        prompt,
    )
    draw_mask(
        figure.add_subplot(grid[1, 1]),
        "Draft: all positions of the window\ngiven what is decoded",
        [(f"query {rank}", prompt) for rank in range(prompt, total)],
        total,
        prompt,
    )
    draw_mask(
        figure.add_subplot(grid[1, 2]),
        "Verify: the joint, each position\ngiven the drafts before it, too",
        [(f"query {rank}", rank) for rank in range(prompt, total)],
        total,
        prompt,
    )
    path = Path(__file__).with_suffix(".png")
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
