"""Tokens filled in parallel beside exact samples: how likely they are together, against network function evaluations.

    python benchmarks/claims/parallel.py --models smollm2-text masked-diffusion/model --text FILE [--judge smollm2]

Texts with most tokens masked are filled by `sequential`, by `fused`, and by `parallel` in fewer and fewer steps. For
each it prints the NFE, the NLL of what was filled under the first model's exact joint (nats a token; for exact samples
of that model it estimates the model's entropy), the judge's perplexity of the whole text, and the difference of its log
to sequential sampling from the first model, paired by text. Models that were trained as masked diffusion have no exact
joint of their own, so they are only run with `parallel`; name them after the first.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from shared import masked_texts, write_result

from asarm.evals.decoding.generative_perplexity import causal_scorer
from asarm.evals.resumable import sampling_seed
from asarm.evals.stats import paired
from asarm.models.load import load_on_device, pick_device
from asarm.objective.loss import log_prob
from asarm.sampling import sample
from asarm.sampling.config import NAMED_SAMPLERS, SamplerConfig
from asarm.utils.progress import progress_bar


def variants(name: str, first: str, steps: list[int], k: int) -> dict[str, SamplerConfig]:
    """The samplers of a model, by the names they are printed under."""
    exact = {sampler: SamplerConfig(**NAMED_SAMPLERS[sampler], k=k) for sampler in ("sequential", "fused")}
    parallel = SamplerConfig(sampler="parallel")
    found = {f"parallel, {count} steps": replace(parallel, steps=count) for count in steps}
    return (exact if name == first else {}) | found


def plot(rows: list[dict], path: Path) -> None:
    """Perplexity by the judge, and joint NLL, against NFE."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, label in ((axes[0], "perplexity", "judge's perplexity"), (axes[1], "joint_nll", "joint NLL, nats")):
        for model in dict.fromkeys(row["model"] for row in rows):
            some = [row for row in rows if row["model"] == model and row["variant"].startswith("parallel")]
            axis.plot([row["nfe"] for row in some], [row[key] for row in some], "o-", label=f"{model}: parallel")
        for row in rows:
            if not row["variant"].startswith("parallel"):
                axis.plot([row["nfe"]], [row[key]], "*", markersize=12, label=f"{row['model']}: {row['variant']}")
        axis.set(xscale="log", yscale="log" if key == "perplexity" else "linear", xlabel="NFE a text", ylabel=label)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-text"], help="the first gives the joint NLL")
    parser.add_argument("--names", nargs="+", default=[], help="what they are called in the results")
    parser.add_argument("--text", required=True, help="as for `asarm decode`")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--num_texts", type=int, default=64)
    parser.add_argument("--mask_rate", type=float, default=0.95)
    parser.add_argument("--steps", nargs="+", type=int, default=[60, 30, 15, 8, 4, 2, 1])
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--judge", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file, and the plot beside it")
    arguments = parser.parse_args()

    device = pick_device("auto")
    loaded = [load_on_device(model, None, "auto", device, arguments.dtype) for model in arguments.models]
    exact, codec = loaded[0]
    sequences = masked_texts(arguments.text, codec, arguments.length, arguments.num_texts, arguments.mask_rate)
    judge = causal_scorer(arguments.judge, device)
    names = arguments.names or [Path(model).name for model in arguments.models]
    rows, baseline = [], None
    print("| model | variant | NFE | joint NLL | judge's perplexity | its log against the first |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, (model, _) in zip(names, loaded, strict=True):
        for label, settings in variants(name, names[0], arguments.steps, arguments.k).items():
            nfe, joint, judged = [], [], []
            with progress_bar(f"{name} {label}", "text", len(sequences.index)) as bar:
                for start in range(0, len(sequences.index), arguments.batch_size):
                    some = range(start, min(start + arguments.batch_size, len(sequences.index)))
                    batch = sequences.batch.select(list(some)).to(device)
                    seeds = [sampling_seed(0, sequences.index[row]) for row in some]
                    result = sample(model, *batch.masked(codec.mask_token_id), settings, seeds)
                    scores = log_prob(exact, result.tokens, batch.given, batch.target).sum(1)
                    joint += (-scores / batch.target.sum(1)).tolist()
                    texts = [codec.decode(row) for row in result.tokens.tolist()]
                    judged += [one.nll for one in judge(texts, result.tokens)]
                    nfe += result.nfe.tolist()
                    bar.update(len(some))
            baseline = judged if baseline is None else baseline
            difference = paired(judged, baseline)
            row = {
                "model": name, "variant": label, "nfe": float(np.mean(nfe)), "joint_nll": float(np.mean(joint)),
                "perplexity": math.exp(float(np.mean(judged))), "log_perplexity_difference": difference,
            }  # fmt: skip
            rows.append(row)
            low, high = difference["interval_95"] or (0.0, 0.0)
            print(
                f"| {name} | {label} | {row['nfe']:.1f} | {row['joint_nll']:.2f} | {row['perplexity']:.1f} | "
                f"{difference['difference']:+.3f} ({low:+.3f} to {high:+.3f}) |",
                flush=True,
            )
    write_result(arguments, rows)
    if arguments.output:
        plot(rows, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
