"""How likely models find the text that people wrote in a gap, with and without what comes after it.

    python benchmarks/reference_nll.py MODEL [MODEL ...] --stories FILE [--task 1/5]
    python benchmarks/reference_nll.py MODEL [MODEL ...] --problems FILE ... --split single-line

Prints the exact joint negative log-likelihood of the references in nats a token, given both sides, and given the prefix
alone, of each model; and their differences to the first model's with the prefix alone, paired by text. An any-subset
model made of a causal one without training, such as `smollm2`, is with the prefix alone that causal model.
All models must share the first one's tokenizer, but for tokens that it lacks.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from asarm.evals.code.data import problems_of_files
from asarm.evals.code.examples import make_example as code_example
from asarm.evals.infilling.example import InfillExample
from asarm.evals.infilling.infill import infill_batch
from asarm.evals.infilling.systems import without_suffixes
from asarm.evals.stats import bootstrap_interval
from asarm.evals.stories.data import TASKS, read_stories
from asarm.evals.stories.data import make_example as story_example
from asarm.models.load import load_on_device, pick_device
from asarm.objective.loss import log_prob
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError


def examples_of(arguments: argparse.Namespace, codec: TextCodec) -> list[InfillExample]:
    """The texts with their gaps, at most `--max_items` of them."""
    if arguments.stories:
        found = [story_example(story, arguments.task, codec) for story in read_stories(arguments.stories)]
    else:
        problems = problems_of_files(arguments.problems, [arguments.split])[arguments.split]
        found = [code_example(problem, arguments.split, codec) for problem in problems]
    return found[: arguments.max_items or None]


def reference_nll(model: torch.nn.Module, examples: Sequence[InfillExample], batch_size: int) -> np.ndarray:
    """The negative log-likelihood of each reference, nats: [n]."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].context_length + len(examples[i].reference_tokens))
    totals = np.zeros(len(examples))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        some = [examples[row] for row in rows]
        batch = infill_batch(some, [one.reference_tokens for one in some], model.device)
        totals[rows] = -log_prob(model, *batch).double().sum(1).cpu().numpy()
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="bundled names, folders or Hub repositories (REPOSITORY@REVISION)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--stories", help="file of stories, as for `asarm stories`")
    source.add_argument("--problems", nargs="+", help="files of HumanEval-Infilling")
    parser.add_argument("--task", choices=TASKS, default="1/5", help="which sentences of the stories are masked")
    parser.add_argument("--split", default="single-line", help="split of the problems")
    parser.add_argument("--max_items", type=int, default=0, help="texts, from the first on; 0 for all")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()

    first = tokens = None
    print("| model | given | NLL, nats a token | against the first |\n| --- | --- | ---: | ---: |")
    for name in arguments.models:
        place, _, revision = name.partition("@")
        model, codec = load_on_device(place, revision or None, "auto", pick_device("auto"), arguments.dtype)
        examples = examples_of(arguments, codec)
        references = [one.reference_tokens for one in examples]
        if tokens is not None and references != tokens:
            raise InputError(f"{name} has other tokens than {arguments.models[0]}")
        tokens = references
        lengths = np.array([len(one) for one in references])
        for given, some in (("prefix", without_suffixes(examples)), ("both sides", examples)):
            nll = reference_nll(model, some, arguments.batch_size) / lengths.mean()  # their mean is that of all tokens
            first = nll if first is None else first
            low, high = bootstrap_interval((nll - first).tolist()) or (0.0, 0.0)
            difference = "" if nll is first else f"{np.mean(nll - first):+.3f} ({low:+.3f} to {high:+.3f})"
            print(f"| {name} | {given} | {nll.mean():.3f} | {difference} |", flush=True)
    print(f"\n{len(tokens or [])} texts, {int(sum(map(len, tokens or [])))} tokens in their gaps; 95 % intervals.")


if __name__ == "__main__":
    main()
