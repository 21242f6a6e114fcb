"""What training costs: floating-point operations, memory (an estimate), throughput and the share of a GPU's peak."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PretrainedConfig

from asarm.objective.chunked_cross_entropy import SLICE_ELEMENTS

# Dense bfloat16 operations per second, from the vendors' data sheets; names as in torch.cuda.get_device_name().
PEAK = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12,
    "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A40": 150e12, "A10": 125e12, "A6000": 155e12,
    "RTX 6000 Ada": 364e12, "RTX 5090": 210e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "MI300X": 1307e12,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Peak operations per second of a GPU in bfloat16; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK.items() if part in name), None)


class ThroughputMeter:
    """Speed since the last report. Every step is timed by `with meter.step():`, and adds to `tokens`, of all processes,
    and `flops`, of this one.
    """

    def __init__(self, device: torch.device):
        self.peak = peak_flops(device)
        self.steps, self.seconds, self.tokens, self.flops = 0, 0.0, 0, 0.0
        self.total_seconds, self.total_tokens = 0.0, 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step."""
        start = time.perf_counter()
        yield
        self.steps += 1
        self.seconds += time.perf_counter() - start

    def report(self, steps_left: int) -> dict[str, float]:
        """Tokens per second, seconds left and, where the peak is known, model FLOPs utilisation; then reset."""
        values = {
            "tokens_per_second": self.tokens / self.seconds,
            "eta_seconds": steps_left * self.seconds / self.steps,
        }
        if self.peak:
            values["mfu"] = self.flops / self.seconds / self.peak
        self.total_seconds += self.seconds
        self.total_tokens += self.tokens
        self.steps, self.seconds, self.tokens, self.flops = 0, 0.0, 0, 0.0
        return values


@dataclass
class SequenceRows:
    """Rows of the network for one sequence in training.

    length: its tokens. targets, drafted: how many are predicted, and predicted again as drafts. is_parallel: whether
    targets see the prompt only; then they are no content.
    """

    length: int
    targets: int
    drafted: int
    is_parallel: bool

    @property
    def prompt(self) -> int:
        return self.length - self.targets

    @property
    def queries(self) -> int:
        return self.targets + self.drafted

    @property
    def total(self) -> int:
        """Content and queries."""
        return (self.prompt if self.is_parallel else self.length - 1) + self.queries

    @property
    def seen(self) -> float:
        """Ranks seen, summed over rows: the prompt by itself, later ranks and queries by what comes before them."""
        if self.is_parallel:
            return self.prompt * (self.prompt + self.targets)
        later = (self.prompt + self.length) * self.targets / 2
        return self.prompt * self.prompt + later + later * (1 + self.drafted / max(self.targets, 1))


class Parameters(NamedTuple):
    """How many parameters a model has, and how many of them are trained."""

    total: int
    trained: int

    @classmethod
    def of(cls, model: torch.nn.Module) -> "Parameters":
        """Those of a model."""
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        return cls(sum(count for count, _ in counts), sum(count for count, is_trained in counts if is_trained))


class BackboneShape(NamedTuple):
    """Layers, width, width of the feed-forward layer, and how many weights the matrices of a layer have."""

    layers: int
    width: int
    inner: int
    weights: int


def is_llama(config: PretrainedConfig) -> bool:
    """Whether a backbone's config is Llama's: its heads are grouped."""
    return hasattr(config, "num_key_value_heads")


def backbone_shape(config: PretrainedConfig) -> BackboneShape:
    """The shape that a backbone's config describes, GPT-2's, XLNet's or Llama's."""
    if is_llama(config):
        width, inner = config.hidden_size, config.intermediate_size
        heads = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
        return BackboneShape(config.num_hidden_layers, width, inner, width * heads + 3 * width * inner)
    width = config.hidden_size if hasattr(config, "d_model") else config.n_embd
    inner = getattr(config, "d_inner", 4 * width)
    return BackboneShape(config.n_layer, width, inner, 4 * width * width + 2 * width * inner)


def sequence_flops(config: PretrainedConfig, rows: SequenceRows, adapter: int = 0) -> float:
    """Operations of a forward and backward pass over one sequence.

    Two for each weight a row meets, and those of attention; the backward pass counts twice, but once for frozen
    weights. Recomputation (gradient checkpointing) is not counted. adapter: how many weights of adapters are trained,
    all others being frozen; 0 if all are trained.
    """
    layers, width, _, block = backbone_shape(config)
    weights = 2 * rows.total * layers * block + 2 * rows.queries * width * config.vocab_size
    trained = 2 * rows.total * adapter + 4 * rows.seen * width * layers
    return (2 if adapter else 3) * weights + 3 * trained


def memory_estimate(
    config: PretrainedConfig,
    parameters: Parameters,
    batch: int,
    sequence: SequenceRows,
    bf16: bool,
    checkpointing: bool,
) -> dict[str, float]:
    """Bytes that training takes on one device. An estimate: add the driver's own (up to 1 GB on a GPU).

    For each parameter that is trained: weight, gradient and AdamW's two moments in float32, temporaries of the
    optimiser's step, and the copy that autocast makes; for each that is frozen its weight. For each row and layer: the
    activations saved for the backward pass, as counted on the CPU for 12 heads x 64 (for Llama 9 heads x 32, three a
    key), and for XLNet its scores by position. And temporaries: the slices of logits, a layer that is recomputed, and
    XLNet's scores by offset.
    """
    layers, width, inner, _ = backbone_shape(config)
    rows, size = batch * sequence.total, 2 if bf16 else 4
    is_xlnet = hasattr(config, "d_model")
    keys = sequence.prompt if sequence.is_parallel else sequence.length
    scores = config.n_head * keys * size if is_xlnet else 0  # of one row
    layer = rows * (width * (26 if is_xlnet else 24 if bf16 else 38) + scores)
    if is_llama(config):
        layer = rows * (width * (30 if bf16 else 40) + 2 * inner * size)
    kept = rows * width * (12 if is_xlnet else 4) if checkpointing else layer
    temporary = 3 * SLICE_ELEMENTS * 4 + (layer if checkpointing else 0) + 6 * rows * scores
    return {
        "weights, gradients, optimiser": parameters.trained * (20.0 + (2 if bf16 else 0))
        + (parameters.total - parameters.trained) * size,
        "activations": float(layers * kept),
        "temporary": float(temporary),
    }


def largest_batches(
    config: PretrainedConfig,
    parameters: Parameters,
    sequence: SequenceRows,
    bf16: bool,
    checkpointing: bool,
    cards: tuple[int, ...] = (16, 24, 48, 80),
) -> dict[int, int]:
    """{GB of a card: the largest batch that fits}, by `memory_estimate`, with a tenth of the card and 1 GB to spare."""
    none, one = (
        sum(memory_estimate(config, parameters, batch, sequence, bf16, checkpointing).values(), start=0.0)
        for batch in (0, 1)
    )  # each further sequence takes as much again
    return {size: max(0, int((0.9e9 * size - 1e9 - none) / (one - none))) for size in cards}
