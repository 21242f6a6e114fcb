"""Reports of a training run: its sizes, a dry run, and the loss curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from transformers import PretrainedConfig

from asarm.training.config import RunConfig
from asarm.training.cost_model import Parameters, largest_batches, memory_estimate
from asarm.utils.jsonl import read_json_lines
from asarm.utils.plotting import save_figure


@dataclass
class RunSummary:
    """Sizes of a run, described in words.

    model: config of the backbone. training_blocks: sequences of local files; None for a streamed dataset.
    device: type of the devices, such as cuda.
    """

    config: RunConfig
    model: PretrainedConfig
    parameters: Parameters
    training_blocks: int | None
    processes: int
    device: str

    @property
    def adapter(self) -> int:
        """How many weights of adapters are trained, 0 if all weights are."""
        return self.parameters.trained if self.config.training.lora_rank else 0

    def describe(self) -> str:
        """Sizes of model, data and step, in one line."""
        training, data = self.config.training, self.config.data
        sequences = self.config.sequences_per_step(self.processes)
        if self.training_blocks is None:
            corpus = f"streamed from {data.dataset} by {data.streams} readers"
        else:
            epochs = training.max_steps * sequences / self.training_blocks
            unit = "texts" if data.unpacked else "blocks"
            corpus = f"{self.training_blocks} training {unit} ({epochs:.2f} epochs)"
        up_to = "up to " if data.unpacked else ""
        parameters = f"{self.parameters.total:,} parameters"
        if self.adapter:
            parameters += f" ({self.adapter:,} of them trained)"
        return (
            f"{self.model.model_type}, {parameters}; {corpus} of {up_to}{data.block_size} tokens; "
            f"{training.max_steps} steps of {up_to}{self.config.tokens_per_step(self.processes):,} tokens "
            f"({sequences} sequences) on {self.processes} {self.device} process{'es' if self.processes > 1 else ''}"
        )

    def memory(self, batch: int) -> dict[str, float]:
        """Bytes that a process takes for micro-batches of some sequences, an estimate."""
        training, rows = self.config.training, self.config.most_rows()
        return memory_estimate(self.model, self.parameters, batch, rows, training.bf16, training.gradient_checkpointing)

    def smaller_batch(self, memory: float = float("inf")) -> str:
        """What to try where a step takes too much memory: the largest micro-batch, of those that divide this one, that
        fits into `memory` bytes by the estimate.
        """
        training, batch = self.config.training, self.config.training.per_device_train_batch_size
        if batch == 1:
            return "one sequence is too much: try --gradient_checkpointing, or a smaller --block_size"
        sizes = [size for size in range(1, batch) if batch % size == 0]
        fitting = [size for size in sizes if sum(self.memory(size).values()) < memory] or sizes[:1]
        steps = training.gradient_accumulation_steps * batch // fitting[-1]
        return (
            f"a micro-batch of {batch} sequences is too much: try --per_device_train_batch_size {fitting[-1]} "
            f"--gradient_accumulation_steps {steps}"
        )

    def dry_run(self, texts: Sequence[str]) -> str:
        """The sizes, an estimate of memory, and the texts of the first batch."""
        training, rows = self.config.training, self.config.most_rows()
        memory = self.memory(training.per_device_train_batch_size)
        plain, checkpointing = (
            largest_batches(self.model, self.parameters, rows, training.bf16, checkpointing)
            for checkpointing in (False, True)
        )
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items())
        fitting = ", ".join(f"{size} GB {count} ({checkpointing[size]})" for size, count in plain.items())
        rate = training.learning_rate * self.config.learning_rate_scale(self.processes)
        return "\n".join(
            [
                self.describe(),
                f"peak learning rate {rate:.3g}",
                f"memory of one process, estimated: {sum(memory.values()) / 2**30:.2f} GiB ({parts})",
                f"largest batch by the same estimate (with gradient checkpointing): {fitting}",
                *(f"--- text {index + 1} of the first batch ---\n{text}" for index, text in enumerate(texts)),
            ]
        )


def plot_training(folder: str | Path) -> Path:
    """Plot loss and held-out NLL by step and, if validation decodes, the cost of that: metrics.jsonl -> `curve.png`."""
    folder = Path(folder)
    lines = read_json_lines(folder / "metrics.jsonl")

    def draw(axes: Axes, key: str, label: str, **style: Any) -> None:
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
