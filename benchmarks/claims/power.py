"""What the comparisons of a decoding evaluation could have seen: `python benchmarks/claims/power.py METRICS.json`.

For each variant against sequential decoding, by the scatter of the paired differences: the difference that a two-sided
t-test at 0.05 would have found with a probability of 80 %, and the probability that two one-sided tests call two
variants the same that are. Normal approximation.
"""

import argparse
import json
from pathlib import Path

from scipy.stats import norm

CRITICAL, POWER = 0.05, 0.8
NAMES = {"gen_nll": "log perplexity", "entropy": "entropy, bits"}


def detectable(error: float) -> float:
    """The difference that is found with probability POWER, by the standard error of the mean difference."""
    return float(norm.isf(CRITICAL / 2) + norm.ppf(POWER)) * error


def chance_of_same(error: float, margin: float) -> float:
    """The probability that both one-sided tests reject differences beyond the margin, where there is none."""
    return max(0.0, float(2 * norm.cdf(margin / error - norm.isf(CRITICAL)) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="metrics.json of `asarm decode`, with sequential among its variants")
    metrics = json.loads(parser.parse_args().metrics.read_text(encoding="utf-8"))
    print("| variant | measure | texts | difference | would be seen | margin | chance of `same` |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for variant, found in metrics["against_sequential"].items():
        for key, name in NAMES.items():
            one = found[key]
            low, high = one["interval_95"]
            error = (high - low) / 2 / float(norm.isf(CRITICAL / 2))
            print(
                f"| {variant} | {name} | {one['n']} | {one['difference']:+.4f} | {detectable(error):.4f} | "
                f"{one['margin']:.4f} | {chance_of_same(error, one['margin']):.2f} |"
            )


if __name__ == "__main__":
    main()
