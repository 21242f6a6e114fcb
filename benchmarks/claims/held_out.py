"""Exact held-out NLL of models that were trained on the same texts, by masking rate, with paired errors.

    python benchmarks/claims/held_out.py MODEL [MODEL ...] --texts PASSAGES.jsonl [--output FILE.json]

The texts are those that training held out (the same share of the same file). Masked are 15, 50 and 95 % of a text's
tokens at random, or gaps as people leave them; targets are decoded in ascending position, or, with --any_order, in one
random order a text, too. Differences to the first model are paired by text.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from shared import write_result

from asarm.data.config import CorpusConfig
from asarm.data.packed import evenly, local_corpus
from asarm.data.unpacked import Texts
from asarm.evals.stats import mean_se
from asarm.models.backbone import AnyOrderModel
from asarm.models.load import load_on_device, pick_device
from asarm.objective.loss import log_prob, random_turns
from asarm.objective.text_gaps import TextGaps
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.training.validation import RATES, masked

ROWS = 8  # scored together


def problems(texts: np.ndarray, codec: TextCodec) -> Iterator[tuple[str, InfillBatch]]:
    """What is masked, and what it is called. texts: [n, N], padded."""
    for rate in RATES:
        yield f"{round(100 * rate)} %", masked(texts, rate, seed=0)
    gaps = TextGaps(codec, ("sentences", "words", "characters"))
    yield "gaps", gaps.batch(torch.from_numpy(texts).long(), torch.Generator().manual_seed(0))


def nll(model: AnyOrderModel, problem: InfillBatch, in_any_order: bool) -> np.ndarray:
    """The NLL of all targets of each text, nats: [n]."""
    found = []
    for start in range(0, len(problem.tokens), ROWS):
        part = problem.select(slice(start, start + ROWS)).to(model.device)
        turn = random_turns(part.tokens, torch.Generator().manual_seed(start)) if in_any_order else None
        found.append(-log_prob(model, *part, turn=turn).sum(1).cpu())
    return torch.cat(found).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--texts", required=True)
    parser.add_argument("--held_out", type=float, default=0.05)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--num_texts", type=int, default=96)
    parser.add_argument("--any_order", action="store_true")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cache_dir", default="", help="as in training")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    device, first = pick_device("auto"), {}
    source = CorpusConfig([arguments.texts], held_out=arguments.held_out, cache_dir=arguments.cache_dir)
    rows = []
    print("| model | order | masked | NLL, nats a token | against the first |\n| --- | --- | --- | ---: | ---: |")
    for name in arguments.models:
        model, codec = load_on_device(name, None, "auto", device, arguments.dtype)
        _, stream = local_corpus(source, codec)
        texts = evenly(Texts(stream, codec.document_end(source.document_end), arguments.length), arguments.num_texts)
        label = Path(name).parent.name if Path(name).name == "model" else name
        for masking, problem in problems(texts, codec):
            for order in ("ascending", "random") if arguments.any_order else ("ascending",):
                if order == "random" and masking == "gaps":
                    continue
                per_token = nll(model, problem, order == "random") / float(problem.target.sum(1).double().mean())
                gap = mean_se(per_token - first.setdefault((masking, order), per_token))
                rows.append({"model": label, "order": order, "masked": masking, "nll": float(per_token.mean()),
                             "difference": gap["mean"], "error": gap["se"], "texts": gap["n"]})  # fmt: skip
                print(
                    f"| {label} | {order} | {masking} | {per_token.mean():.3f} | "
                    f"{gap['mean']:+.3f} ± {gap['se']:.3f} |",
                    flush=True,
                )
    write_result(arguments, rows)


if __name__ == "__main__":
    main()
