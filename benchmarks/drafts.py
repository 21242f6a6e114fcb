"""What could make drafts better, and what another order would cost, on texts as in benchmarks/fused.py.

    python benchmarks/drafts.py [--model tiny-text] [--texts 4] [--gaps 60]

First table: the chance that a draft is accepted if all before it were, by how many tokens before its place it lacks:
of drafts that are blind to these, of the draft head's, of both mixed with the bigram table of the visible text (the
share of the mixture that does best), and of two candidates a place instead of one. Places are those whose neighbour on
the left is known or drafted. Second table: texts with one gap under other orders of its places: nats a token under the
joint that the order means, the chances of blind drafts, and the tokens a call that `fused` would land by them.
Tokens are the texts' own, in all tables.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from fused import DATASETS, Task, text_tasks

from asarm.models.load import load
from asarm.models.rank_order import RankOrder, rank_order
from asarm.sampling.assd import bigram_distribution

SHARES = (0.05, 0.1, 0.2, 0.4)  # of the bigram table in a mixture


class Drafts(NamedTuple):
    """Drafts for M places of one text. draft_depth: [M] int64, tokens before its place that a draft lacks.

    joint, blind: [M, V] laws of the place and of the draft. states: [M, E] of the query that drafts. left, has_left:
    [M] the token to the left, and whether it comes before. known: [M, N] bool, what the draft was shown of the text.
    """

    draft_depth: torch.Tensor
    joint: torch.Tensor
    blind: torch.Tensor
    states: torch.Tensor
    left: torch.Tensor
    has_left: torch.Tensor
    known: torch.Tensor


@torch.inference_mode()
def drafts_of(model, tokens: torch.Tensor, order: RankOrder, window: int) -> Drafts:
    """Drafts for all targets of a text [1, N] that lack 1 to `window` tokens of those behind the prompt."""
    first, total = int(order.prompt_length), int(order.length)
    pairs = [(r, lack) for r in range(first, total) for lack in range(1, min(window, r - first) + 1)]
    ranks, draft_depth = torch.tensor(pairs).T
    both = torch.cat((ranks, ranks))[None]
    ranked = tokens.gather(1, order.order)
    states = model.hidden(
        ranked[:, : total - 1],
        order.order[:, : total - 1],
        order.content_context()[:, : total - 1],
        order.order.gather(1, both),
        torch.cat((ranks - draft_depth, ranks))[None],
    )
    drafting, joint = states[0].chunk(2)
    place = order.order[0, ranks]
    rank_of = order.order[0].argsort()  # by position
    before = (place - 1).clamp(min=0)
    return Drafts(
        draft_depth,
        model.logits(joint).softmax(-1),
        model.logits(drafting).softmax(-1),
        drafting,
        tokens[0, before],
        (place > 0) & (rank_of[before] < ranks),
        rank_of < (ranks - draft_depth)[:, None],
    )


def accepted(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The chance [M] that a draft is accepted."""
    return torch.minimum(p, q).sum(-1)


def accepted_of_two(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The chance [M] that one of two drafts is, the second being judged by what the first left of p."""
    one = accepted(p, q)
    rest = (p - q).clamp(min=0)
    return one + (1 - one) * accepted(rest / rest.sum(-1, keepdim=True).clamp(min=1e-9), q)


@torch.inference_mode()
def chances(model, task: Task, window: int) -> dict[str, torch.Tensor]:
    """Mean chance [window] of each kind of draft on the texts of a task."""
    found: dict[str, list[torch.Tensor]] = {}
    draft_depth = []
    for tokens, given, target in task.texts:
        drafts = drafts_of(model, tokens, rank_order(given, target), window)
        drafts = Drafts(*(part[drafts.has_left] for part in drafts))
        p, laws = drafts.joint, {"blind": drafts.blind}
        if model.draft_head is not None:
            laws["head"] = model.logits(model.follow(drafts.states, drafts.left)).softmax(-1)
        table = bigram_distribution(
            tokens.expand(len(p), -1), drafts.known, drafts.left, drafts.has_left, model.config.vocab_size
        )
        for name, q in laws.items():
            values = {name: accepted(p, q), f"{name}, two candidates": accepted_of_two(p, q)}
            values |= {f"{name} + {share} bigram": accepted(p, (1 - share) * q + share * table) for share in SHARES}
            for kind, value in values.items():
                found.setdefault(kind, []).append(value)
        draft_depth.append(drafts.draft_depth)
    which = torch.cat(draft_depth)
    return {
        kind: torch.stack([torch.cat(values)[which == lack].mean() for lack in range(1, window + 1)])
        for kind, values in found.items()
    }


def without_the_worse_mixtures(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of each mixture the best share only."""
    best: dict[str, str] = {}
    for kind, values in found.items():
        name = kind.split(" + ")[0] + (" + bigram" if "bigram" in kind else "")
        if name not in best or values.mean() > found[best[name]].mean():
            best[name] = kind
    return {kind: found[kind] for kind in best.values()}


def spread(places: torch.Tensor) -> torch.Tensor:
    """The places [S] of a gap, every second one first."""
    return torch.cat((places[::2], places[1::2]))


def halved(places: torch.Tensor) -> torch.Tensor:
    """The places [S] of a gap from the middle on: each one halves a stretch."""
    rows, found = [places], []
    while rows:
        found += [row[len(row) // 2] for row in rows if len(row)]
        rows = [part for row in rows if len(row) > 1 for part in (row[: len(row) // 2], row[len(row) // 2 + 1 :])]
    return torch.stack(found)


ORDERS = {"left to right": lambda places: places, "every second first": spread, "halving": halved}


@torch.inference_mode()
def under_order(model, tokens: torch.Tensor, given: torch.Tensor, arrange, window: int):
    """Nats a token of a text [1, N] with its targets in another order, and the chances [window] of blind drafts."""
    order = rank_order(given, ~given)
    first = int(order.prompt_length)
    order.order = torch.cat((order.order[0, :first], arrange(order.order[0, first:])))[None]
    drafts = drafts_of(model, tokens, order, window)
    values = accepted(drafts.joint, drafts.blind)
    ranks = torch.arange(first, tokens.shape[1])[None]
    ranked = tokens.gather(1, order.order)
    logits = model(
        ranked[:, :-1], order.order[:, :-1], order.content_context()[:, :-1], order.order.gather(1, ranks), ranks
    )
    nll = torch.nn.functional.cross_entropy(logits[0].float(), ranked[0, first:])
    return float(nll), [float(values[drafts.draft_depth == lack].mean()) for lack in range(1, window + 1)]


def show(*cells) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-text")
    parser.add_argument("--text", type=Path, default=DATASETS / "sample_text.txt", help="a text file, such as WikiText")
    parser.add_argument("--stories", type=Path, default=DATASETS / "stories.csv")
    parser.add_argument("--length", type=int, default=128, help="tokens of a packed text")
    parser.add_argument("--texts", type=int, default=4, help="packed texts of each kind")
    parser.add_argument("--gaps", type=int, default=60, help="stories")
    parser.add_argument("--window", type=int, default=4, help="drafts lack so many tokens at most")
    arguments = parser.parse_args()
    model, codec = load(arguments.model)
    tasks = text_tasks(codec, model.config.n_positions, arguments)
    lacks = range(1, arguments.window + 1)
    show("texts", "drafts", *(f"draft_depth {lack}" for lack in lacks))
    show("---", "---", *["---:"] * len(lacks))
    for task in tasks:
        for kind, values in without_the_worse_mixtures(chances(model, task, arguments.window)).items():
            show(task.name, kind, *(f"{value:.3f}" for value in values.tolist()))
    print()
    show("texts", "order", "nats a token", *(f"draft_depth {lack}" for lack in lacks), "tokens a call")
    show("---", "---", "---:", *["---:"] * len(lacks), "---:")
    for task in tasks:
        texts = [(tokens, given) for tokens, given, target in task.texts if int(target.sum()) > arguments.window]
        for name, arrange in ORDERS.items():
            results = [under_order(model, tokens, given, arrange, arguments.window) for tokens, given in texts]
            nll = torch.tensor([nll for nll, _ in results])
            means = torch.tensor([values for _, values in results]).mean(0)
            landed = 1 + float(means.cumprod(0).sum())
            show(task.name, name, f"{nll.mean():.3f}", *(f"{value:.3f}" for value in means.tolist()), f"{landed:.2f}")


if __name__ == "__main__":
    main()
