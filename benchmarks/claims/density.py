"""The density of some tokens given others: one function evaluation beside one for each token, time and equality.

    python benchmarks/claims/density.py [--model smollm2-text] [--lengths 32 64 128] [--output FILE.json]

Random halves of texts are given, and the exact joint log-density of the other half is computed in one evaluation
(`asarm.log_prob`) and by the chain rule, in which each conditional is an evaluation of its own.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from shared import masked_texts, write_result

from asarm.models.backbone import AnyOrderModel
from asarm.models.load import load_on_device, pick_device
from asarm.objective.loss import log_prob

TEXT = Path(__file__).resolve().parents[2] / "src/asarm/eval_datasets/sample_text.txt"


@torch.inference_mode()
def by_chain_rule(model: AnyOrderModel, tokens: torch.Tensor, given: torch.Tensor, target: torch.Tensor) -> float:
    """The log-density (nats) of the targets of one text [1, N], from one evaluation for each of them."""
    total, decided = 0.0, torch.zeros_like(target)
    for position in target[0].nonzero()[:, 0].tolist():
        # The targets before it, in the order in which they are decoded, and then this one.
        decided[0, position] = True
        scores = log_prob(model, tokens, given, decided)
        total += float(scores[0, position])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-text")
    parser.add_argument("--text", default=str(TEXT))
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--num_texts", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    device = pick_device("auto")
    model, codec = load_on_device(arguments.model, None, "auto", device, arguments.dtype)
    rows = []
    print("| tokens | targets | evaluations | s, one | s, each token | times as fast | largest difference, nats |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for length in arguments.lengths:
        sequences = masked_texts(arguments.text, codec, length, arguments.num_texts, mask_rate=0.5)
        seconds, differences = np.zeros(2), []
        for row in range(len(sequences.index)):
            batch = sequences.batch.select([row]).to(device)
            begin = time.perf_counter()
            once = float(log_prob(model, *batch).sum())
            middle = time.perf_counter()
            each = by_chain_rule(model, *batch)
            seconds += (middle - begin, time.perf_counter() - middle)
            differences.append(abs(once - each))
        targets = int(batch.target.sum())
        one, many = (seconds / len(sequences.index)).tolist()
        rows.append({"tokens": length, "targets": targets, "seconds_one": one, "seconds_each": many,
                     "largest_difference": max(differences)})  # fmt: skip
        print(
            f"| {length} | {targets} | 1 / {targets} | {one:.3f} | {many:.2f} | {many / one:.1f} | "
            f"{max(differences):.1e} |",
            flush=True,
        )
    write_result(arguments, rows)


if __name__ == "__main__":
    main()
