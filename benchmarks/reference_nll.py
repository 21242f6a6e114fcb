"""How likely models find the text that people wrote in a gap, with and without what comes after it.

    python benchmarks/reference_nll.py MODEL [MODEL ...] --stories FILE [--task 1/5]
    python benchmarks/reference_nll.py MODEL [MODEL ...] --problems FILE ... --split single-line
    python benchmarks/reference_nll.py MODEL --fim FOLDER --diffusion FOLDER --stories FILE --output FILE.json

Prints the exact joint negative log-likelihood of the references in nats a token, given both sides, and given the prefix
alone, of each model; and their differences to the first model's with the prefix alone, paired by text. An any-subset
model made of a causal one without training, such as `smollm2`, is with the prefix alone that causal model.
All models must share the first one's tokenizer, but for tokens that it lacks. `--fim` names causal models that were
trained to fill in the middle. `--diffusion` names any-subset models that were trained as masked diffusion: theirs is an
upper bound of the NLL, the usual one, estimated with a few random subsets of each gap.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from asarm.evals.code.data import problems_of_files
from asarm.evals.code.examples import make_example as code_example
from asarm.evals.infilling.causal import CausalModel
from asarm.evals.infilling.example import InfillExample
from asarm.evals.infilling.infill import infill_batch
from asarm.evals.infilling.systems import without_suffixes
from asarm.evals.stats import bootstrap_interval
from asarm.evals.stories.data import TASKS, read_stories
from asarm.evals.stories.data import make_example as story_example
from asarm.models.backbone import AnyOrderModel
from asarm.models.load import load_on_device, pick_device
from asarm.models.rank_order import rank_order
from asarm.objective.loss import LossConfig, log_prob, query_nll, target_queries
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.files import write_json
from asarm.utils.provenance import provenance

SUBSETS = 8  # of each gap, for the bound


def examples_of(arguments: argparse.Namespace, codec: TextCodec) -> list[InfillExample]:
    """The texts with their gaps, at most `--max_items` of them."""
    if arguments.stories:
        found = [story_example(story, arguments.task, codec) for story in read_stories(arguments.stories)]
    else:
        problems = problems_of_files(arguments.problems, [arguments.split])[arguments.split]
        found = [code_example(problem, arguments.split, codec) for problem in problems]
    return found[: arguments.max_items or None]


def reference_nll(
    score: Callable[[InfillBatch], torch.Tensor], examples: Sequence[InfillExample], device: torch.device, size: int
) -> np.ndarray:
    """The negative log-likelihood of each reference, nats: [n]. score: gives those [B] of a batch. size: of batches."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].context_length + len(examples[i].reference_tokens))
    totals = np.zeros(len(examples))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        some = [examples[row] for row in rows]
        batch = infill_batch(some, [one.reference_tokens for one in some], device)
        totals[rows] = score(batch).double().cpu().numpy()
    return totals


def joint_nll(model: AnyOrderModel) -> Callable[[InfillBatch], torch.Tensor]:
    """The exact joint NLL of the targets of each row [B]."""
    return lambda batch: -log_prob(model, *batch).sum(1)


def diffusion_bound(model: AnyOrderModel) -> Callable[[InfillBatch], torch.Tensor]:
    """An estimate of the bound of masked diffusion on the NLL of the targets of each row [B].

    It is the mean over l = 1 .. n of n / l times the NLL of l random targets of n, each given all other tokens of the
    row (arXiv 2110.02037): the loss of masked diffusion at a gap (arXiv 2406.07524) with time taken out.
    Strata of l are spread over SUBSETS draws.
    """
    generator = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def score(batch: InfillBatch) -> torch.Tensor:
        tokens, given, target = batch
        count = target.sum(1).cpu()  # [B]
        total = torch.zeros(len(tokens), device=tokens.device)
        for stratum in range(SUBSETS):
            share = (stratum + torch.rand(len(tokens), generator=generator)) / SUBSETS
            hidden_count = (share * count).long() + 1  # [B], uniform in 1 .. n over all strata
            luck = torch.rand(tokens.shape, generator=generator).masked_fill(~target.cpu(), 2.0)
            hidden = (luck.argsort(1).argsort(1) < hidden_count[:, None]).to(tokens.device)
            nll = single_nll(model, InfillBatch(tokens, given | (target & ~hidden), hidden))
            total += nll * (count / hidden_count).to(tokens.device)
        return total / SUBSETS

    return score


def single_nll(model: AnyOrderModel, batch: InfillBatch) -> torch.Tensor:
    """The NLL of the targets of each row, each given the prompt alone: [B]."""
    order = rank_order(batch.given, batch.target)
    ranks, contexts = target_queries(order, LossConfig(objective="parallel"))  # [B, S]
    is_target = ranks < order.length[:, None]
    ranks = ranks.minimum(order.length[:, None] - 1)
    ranked, seen = batch.tokens.gather(1, order.order), int(contexts.max())
    content = (part[:, :seen] for part in (ranked, order.order, order.content_context()))
    nll = query_nll(model, *content, order.order.gather(1, ranks), contexts, targets=ranked.gather(1, ranks))
    return (nll * is_target).sum(1)


@torch.inference_mode()
def fim_nll(model: CausalModel, examples: Sequence[InfillExample]) -> np.ndarray:
    """The NLL of each reference after a prompt that shows prefix and suffix, nats: [n]."""
    if model.fim is None:
        raise InputError("the causal model has no marks for filling in the middle")
    found = []
    for one in examples:
        prompt = [*model.begin, *model.fim.prompt(one.prefix_tokens, one.suffix_tokens)]
        ids = torch.tensor(prompt + one.reference_tokens, device=model.device)
        logits = model.model(ids[None, :-1]).logits[0, len(prompt) - 1 :].float()  # [n, V]
        found.append(F.cross_entropy(logits, ids[len(prompt) :], reduction="sum").item())
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="bundled names, folders or Hub repositories (REPOSITORY@REVISION)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--stories", help="file of stories, as for `asarm stories`")
    source.add_argument("--problems", nargs="+", help="files of HumanEval-Infilling")
    parser.add_argument("--fim", nargs="+", default=[], help="causal models trained to fill in the middle")
    parser.add_argument("--diffusion", nargs="+", default=[], help="models trained as masked diffusion")
    parser.add_argument("--task", choices=TASKS, default="1/5", help="which sentences of the stories are masked")
    parser.add_argument("--split", default="single-line", help="split of the problems")
    parser.add_argument("--max_items", type=int, default=0, help="texts, from the first on; 0 for all")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    arguments = parser.parse_args()

    device = pick_device("auto")
    tokens: list[list[int]] = []
    first: list[np.ndarray] = []  # the NLL of each text, nats a token, of the first row
    rows: dict[str, dict] = {}

    def shared_examples(name: str, codec: TextCodec) -> list[InfillExample]:
        examples = examples_of(arguments, codec)
        tokens.extend([] if tokens else [one.reference_tokens for one in examples])
        if [one.reference_tokens for one in examples] != tokens:
            raise InputError(f"{name} has other tokens than {arguments.models[0]}")
        return examples

    def add(name: str, given: str, totals: np.ndarray) -> None:
        nll = totals / np.mean([len(one) for one in tokens])  # the mean of these is that of all tokens
        row, shown = {"nll": float(nll.mean())}, ""
        if first:
            gap = nll - first[0]
            low, high = bootstrap_interval(gap.tolist()) or (0.0, 0.0)
            row |= {"against_first": float(gap.mean()), "interval_95": [low, high]}
            shown = f"{gap.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        else:
            first.append(nll)
        rows[f"{name}, {given}"] = row
        print(f"| {name} | {given} | {nll.mean():.3f} | {shown} |", flush=True)

    print("| model | given | NLL, nats a token | against the first |\n| --- | --- | ---: | ---: |")
    for name in [*arguments.models, *arguments.diffusion]:
        repository, _, revision = name.partition("@")
        model, codec = load_on_device(repository, revision or None, "auto", device, arguments.dtype)
        examples = shared_examples(name, codec)
        if name in arguments.diffusion:
            nll = reference_nll(diffusion_bound(model), examples, device, arguments.batch_size)
            add(name, "both sides, at most", nll)
            continue
        for given, some in (("prefix", without_suffixes(examples)), ("both sides", examples)):
            add(name, given, reference_nll(joint_nll(model), some, device, arguments.batch_size))
    for name in arguments.fim:
        causal = CausalModel(name, device)
        add(name, "both sides", fim_nll(causal, shared_examples(name, causal.codec)))
    print(f"\n{len(tokens)} texts, {sum(map(len, tokens))} tokens in their gaps; 95 % intervals.")
    if arguments.output:
        settings = {key: str(value) for key, value in vars(arguments).items()}
        write_json(arguments.output, {"settings": settings, "nll": rows, "provenance": provenance()})


if __name__ == "__main__":
    main()
