"""What training costs: floating-point operations, memory (an estimate) and the share of a GPU's peak that is used."""

import torch

from asarm.objective.chunked_cross_entropy import SLICE_ELEMENTS

# Dense bfloat16 operations a second, from the makers' data sheets; names as in torch.cuda.get_device_name().
PEAK = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12,
    "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A40": 150e12, "A10": 125e12, "A6000": 155e12,
    "RTX 6000 Ada": 364e12, "RTX 5090": 210e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "MI300X": 1307e12,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Peak operations a second of a GPU in bfloat16; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK.items() if part in name), None)


def shape_of(config) -> tuple[int, int, int]:
    """Layers, width and width of the feed-forward layer of a backbone's config, GPT-2's or XLNet's."""
    width = config.hidden_size if hasattr(config, "d_model") else config.n_embd
    return config.n_layer, width, getattr(config, "d_inner", 4 * width)


def text_flops(config, length: int, targets: int, drafted: int) -> float:
    """Operations of a forward and backward pass over one text: two for each weight a row meets, and those of attention;
    the backward pass counts twice. What is computed anew (gradient checkpointing) is not counted."""
    layers, width, inner = shape_of(config)
    prompt, queries = length - targets, targets + drafted
    rows = length - 1 + queries
    block = 4 * width * width + 2 * width * inner
    # Ranks seen, summed over rows: the prompt by itself, later ranks and queries by what comes before them.
    later = (prompt + length) * targets / 2
    seen = prompt * prompt + later + later * (1 + drafted / max(targets, 1))
    return 3 * (2 * rows * layers * block + 2 * queries * width * config.vocab_size + 4 * seen * width * layers)


def memory_estimate(
    config, parameters: int, batch: int, length: int, targets: int, drafted: int, bf16: bool, checkpointing: bool
) -> dict[str, float]:
    """Bytes that training takes on one device. An estimate: add the driver's own (up to 1 GB on a GPU).

    For each parameter: weight, gradient and AdamW's two moments in float32, what its step needs besides, and the copy
    that autocast makes. For each row and layer: what waits for the backward pass, as counted on the CPU for 12 heads x
    64, and for XLNet its scores by position. And what exists for a while: the slices of logits, a layer that is
    computed anew, and XLNet's scores by offset.
    """
    layers, width, _ = shape_of(config)
    rows, size = batch * (length - 1 + targets + drafted), 2 if bf16 else 4
    is_xlnet = hasattr(config, "d_model")
    scores = config.n_head * length * size if is_xlnet else 0  # a row's
    layer = rows * (width * (26 if is_xlnet else 24 if bf16 else 38) + scores)
    kept = rows * width * (12 if is_xlnet else 4) if checkpointing else layer
    passing = 3 * SLICE_ELEMENTS * 4 + (layer if checkpointing else 0) + 6 * rows * scores
    return {
        "weights, gradients, optimiser": parameters * (20.0 + (2 if bf16 else 0)),
        "activations": float(layers * kept),
        "in passing": float(passing),
    }


def largest_batches(*arguments, checkpointing: bool, cards: tuple[int, ...] = (16, 24, 48, 80)) -> dict[int, int]:
    """The largest batch that fits into cards of so many GB, by `memory_estimate`, with a tenth of the card and 1 GB to
    spare. arguments: config, parameters, length, targets, drafted, bf16."""
    config, parameters, *shape = arguments
    none, one = (
        sum(memory_estimate(config, parameters, batch, *shape, checkpointing).values()) for batch in (0, 1)
    )  # each further text takes as much again
    return {size: max(0, int((0.9e9 * size - 1e9 - none) / (one - none))) for size in cards}
