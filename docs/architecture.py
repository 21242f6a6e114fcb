"""Draw docs/architecture.png, the packages and their imports, from the source itself: python docs/architecture.py

An arrow that a longer way makes superfluous is left out.
"""

import ast
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

SOURCE = Path(__file__).resolve().parents[1] / "src" / "asarm"
# package -> (x, y) of its box, and what it is for
BOXES = {
    "cli": ((2.0, 5.0), "one thin file a command"),
    "training": ((0.6, 4.0), "loop, checkpoints,\nvalidation, optimizers"),
    "evals": ((2.0, 4.0), "decoding, stories, code,\nlanguage; statistics"),
    "filling": ((3.4, 4.0), "gaps of texts filled and\nscored; pages"),
    "data": ((0.2, 2.8), "corpora and streams,\ntokenised and packed"),
    "objective": ((2.0, 2.8), "losses, masking,\nexact log-densities"),
    "sampling": ((3.8, 2.8), "sequential, ASSD, fused,\nparallel; verification"),
    "models": ((2.9, 1.6), "backbones, rank order,\ncache, loading"),
    "tokenization": ((1.5, 0.6), "text, gaps, batches,\ntransforms of logits"),
}
WIDTH, HEIGHT = 1.15, 0.62


def imports() -> Counter:
    """{(package, package that it imports): number of imports}, but for imports of `utils`."""
    found: Counter = Counter()
    for path in SOURCE.rglob("*.py"):
        package = path.relative_to(SOURCE).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asarm."):
                other = node.module.split(".")[1]
                if package in BOXES and other in BOXES and other != package:
                    found[package, other] += 1
    return found


def direct(edges: Counter) -> list[tuple[str, str]]:
    """The edges without those that a longer way makes superfluous."""

    def reaches(start: str, end: str) -> bool:
        return any(to == end or reaches(to, end) for origin, to in edges if origin == start)

    return [
        (start, end)
        for start, end in edges
        if not any(other != end and reaches(other, end) for origin, other in edges if origin == start)
    ]


def draw(path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 6.6), layout="constrained")
    for package, other in direct(imports()):
        (x, y), (to_x, to_y) = BOXES[package][0], BOXES[other][0]
        ends = (x + WIDTH / 2, y - 0.05), (to_x + WIDTH / 2, to_y + HEIGHT + 0.05)
        axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=14, color="0.35", shrinkA=0, shrinkB=0))
    axes.text(2.6, 0.1, "utils (files, errors, settings) is imported by all", ha="center", fontsize=9, color="0.35")
    for package, ((x, y), text) in BOXES.items():
        box = FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0.04", facecolor="#f4f1e8", edgecolor="0.3")
        axes.add_patch(box)
        axes.text(x + WIDTH / 2, y + HEIGHT - 0.12, package, ha="center", va="center", weight="bold", fontsize=12)
        axes.text(x + WIDTH / 2, y + 0.22, text, ha="center", va="center", fontsize=8.5)
    axes.set(xlim=(0, 5.2), ylim=(0, 5.8))
    axes.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
