"""Figures, drawn without a display."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, close it and return the path."""
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
