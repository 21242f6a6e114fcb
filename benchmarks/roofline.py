"""Decoding against the bound of the machine, that of reading the weights once: `benchmarks/decode.py --roofline`.

A call of a network with few rows cannot be faster than reading its weights. The bandwidth is measured on this machine,
by a product of a large matrix and a vector in the dtype of the model, which reads every weight once, as a call does.
"""

from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from asarm.models.backbone import AnyOrderModel
from asarm.models.compiled import compiled_for_decoding
from asarm.models.ops import pack_weights, packed_linear
from asarm.sampling import sample, synchronised_time
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch

PROBE_BYTES, REPEATS = 256 * 2**20, 7
ROOFLINE_SAMPLERS = {
    "sequential": SamplerConfig(sampler="sequential"),
    "assd, k=5": SamplerConfig(k=5),
    "fused, k=5": SamplerConfig(sampler="fused", k=5),
}


@torch.inference_mode()
def bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes a second that a product of a large matrix and a vector reads, the best of some."""
    width = 4096
    layer = nn.Linear(width, PROBE_BYTES // (width * dtype.itemsize), bias=False, device=device, dtype=dtype)
    pack_weights(layer)
    vector, fastest = torch.ones(1, width, device=device, dtype=dtype), float("inf")
    for _ in range(REPEATS):
        start = synchronised_time(device)
        packed_linear(vector, layer.weight)
        fastest = min(fastest, synchronised_time(device) - start)
    return layer.weight.nbytes / fastest


def bytes_read(model: AnyOrderModel) -> int:
    """Bytes of the weights that a call reads: all but an input embedding that is not the output layer, too."""
    output, _ = model.output_layer()
    embedding = model.get_input_embeddings().weight
    head = {id(part) for part in model.draft_head.parameters()} if model.draft_head is not None else set()
    parts = {id(part): part for part in model.parameters() if part is not embedding or embedding is output}
    return sum(part.nbytes for key, part in parts.items() if key not in head)


def seconds_a_token(model: AnyOrderModel, batch: InfillBatch, config: SamplerConfig, rounds: int, choice: str) -> dict:
    """Medians of decoding a batch some times, after once. choice: as in `compiled_for_decoding`."""
    compiled = compiled_for_decoding(model, choice)
    seeds, inputs = range(len(batch.tokens)), batch.to(model.device)
    results = [sample(compiled, *inputs, config, seeds) for _ in range(rounds + 1)][1:]
    seconds = median(result.seconds for result in results)
    nfe, targets = int(results[0].nfe.max()), int(results[0].targets.sum())
    return {"nfe": nfe, "ms": 1e3 * seconds / nfe, "seconds": seconds, "tokens_per_second": targets / seconds}


def compare_with_bandwidth(
    models: dict[str, AnyOrderModel],
    batch_of: Callable[[AnyOrderModel], InfillBatch],
    causal_ms: float | None,
    rounds: int,
    choice: str,
    show: Callable[..., None],
) -> list[dict]:
    """The table: each sampler's time a call as a multiple of the bound. causal_ms: a token of GPT-2 with its cache."""
    show("model", "dtype", "sampler", "NFE", "ms/NFE", "bound, ms", "times the bound", "share of bandwidth, %",
         "tokens/s", "GPT-2 left to right, tokens/s")  # fmt: skip
    show("---", "---", "---", *["---:"] * 7)
    rows = []
    for name, model in models.items():
        rate = bandwidth(model.device, model.dtype)
        bound = 1e3 * bytes_read(model) / rate
        for sampler, config in ROOFLINE_SAMPLERS.items():
            found = seconds_a_token(model, batch_of(model), config, rounds, choice)
            row = {
                "model": name, "dtype": str(model.dtype).removeprefix("torch."), "sampler": sampler,
                "nfe": found["nfe"], "ms": found["ms"], "bound_ms": bound, "times": found["ms"] / bound,
                "share": 100 * bound / found["ms"], "tokens_per_second": found["tokens_per_second"],
                "causal_tokens_per_second": causal_ms and 1e3 / causal_ms,
            }  # fmt: skip
            rows.append(row | {"bandwidth": rate})
            show(*row.values())
    return rows
