"""Acceptance of other kinds of drafts, and the cost of other decoding orders, on the tasks of benchmarks/fused.py.

    python benchmarks/drafts.py [--model tiny-text] [--texts 4] [--gaps 60]

First table: the probability that a draft is accepted if all before it were, by the depth of the draft (how many tokens
before its rank it is not shown): for drafts without a draft head (blind), drafts of the head unless it is recurrent,
both mixed with bigram counts of the visible tokens (at the best of some shares), and two candidates a position instead
of one. Positions are those whose left neighbour is known or drafted. Second table: sequences with one gap under other
orders of its positions: nats a token under the joint of that order, the acceptance of blind drafts, and the tokens a
call that `fused` would commit by it. In all tables tokens are those of the original sequence, not sampled ones.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from fused import DATASETS, Task, text_tasks

from asarm.models.backbone import AnyOrderModel
from asarm.models.load import load
from asarm.models.rank_order import RankOrder, rank_order
from asarm.sampling.assd import NO_TOKEN, BigramTable

SHARES = (0.05, 0.1, 0.2, 0.4)  # of the bigram table in a mixture


class Drafts(NamedTuple):
    """Drafts for M positions of one sequence [N].

    draft_depth: [M] int64, tokens before its rank that a draft is not shown. joint, blind: [M, V], distributions of the
    target and of the draft. states: [M, E] of the drafting query. left, has_left: [M], the token to the left, and
    whether its rank is lower. known: [M, N] bool, the positions that the draft is shown.
    """

    draft_depth: torch.Tensor
    joint: torch.Tensor
    blind: torch.Tensor
    states: torch.Tensor
    left: torch.Tensor
    has_left: torch.Tensor
    known: torch.Tensor


@torch.inference_mode()
def drafts_of(model: AnyOrderModel, tokens: torch.Tensor, order: RankOrder, window: int) -> Drafts:
    """Drafts of depths 1 to `window` for all targets of a sequence [1, N]; all are shown the whole prompt."""
    first, total = int(order.prompt_length), int(order.length)
    pairs = [(r, depth) for r in range(first, total) for depth in range(1, min(window, r - first) + 1)]
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
    position = order.order[0, ranks]
    rank_of = order.order[0].argsort()  # by position
    before = (position - 1).clamp(min=0)
    return Drafts(
        draft_depth,
        model.logits(joint).softmax(-1),
        model.logits(drafting).softmax(-1),
        drafting,
        tokens[0, before],
        (position > 0) & (rank_of[before] < ranks),
        rank_of < (ranks - draft_depth)[:, None],
    )


def accepted(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The probability [M] that a draft from q is accepted for p. Distributions are [M, V]."""
    return torch.minimum(p, q).sum(-1)


def accepted_of_two(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The probability [M] that one of two drafts is, where the second is verified against the residual of the first."""
    one = accepted(p, q)
    rest = (p - q).clamp(min=0)
    return one + (1 - one) * accepted(rest / rest.sum(-1, keepdim=True).clamp(min=1e-9), q)


@torch.inference_mode()
def acceptances(model: AnyOrderModel, task: Task, window: int) -> dict[str, torch.Tensor]:
    """Mean acceptance by depth [window] of each kind of draft on the sequences of a task."""
    found: dict[str, list[torch.Tensor]] = {}
    draft_depth = []
    for tokens, given, target in task.sequences:
        drafts = drafts_of(model, tokens, rank_order(given, target), window)
        drafts = Drafts(*(part[drafts.has_left] for part in drafts))
        p, distributions = drafts.joint, {"blind": drafts.blind}
        if model.draft_head is not None and not model.draft_head.recurrent:
            moved = model.follow(drafts.states, drafts.left, drafts.states)  # it reads the first two alone
            distributions["head"] = model.logits(moved).softmax(-1)
        left = drafts.left.where(drafts.has_left, NO_TOKEN)
        table = BigramTable(tokens.expand(len(p), -1), drafts.known, model.config.vocab_size).after(left)
        for name, q in distributions.items():
            values = {name: accepted(p, q), f"{name}, two candidates": accepted_of_two(p, q)}
            values |= {f"{name} + {share} bigram": accepted(p, (1 - share) * q + share * table) for share in SHARES}
            for kind, value in values.items():
                found.setdefault(kind, []).append(value)
        draft_depth.append(drafts.draft_depth)
    which = torch.cat(draft_depth)
    return {
        kind: torch.stack([torch.cat(values)[which == depth].mean() for depth in range(1, window + 1)])
        for kind, values in found.items()
    }


def with_the_best_mixtures(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keep the best share of each mixture only."""
    best: dict[str, str] = {}
    for kind, values in found.items():
        name = kind.split(" + ")[0] + (" + bigram" if "bigram" in kind else "")
        if name not in best or values.mean() > found[best[name]].mean():
            best[name] = kind
    return {kind: found[kind] for kind in best.values()}


def interleaved(positions: torch.Tensor) -> torch.Tensor:
    """The positions [S] of a gap, every second one first."""
    return torch.cat((positions[::2], positions[1::2]))


def halved(positions: torch.Tensor) -> torch.Tensor:
    """The positions [S] of a gap, the middle one first, then the middles of both halves, and so on."""
    spans, found = [positions], []
    while spans:
        found += [span[len(span) // 2] for span in spans if len(span)]
        spans = [
            part for span in spans if len(span) > 1 for part in (span[: len(span) // 2], span[len(span) // 2 + 1 :])
        ]
    return torch.stack(found)


ORDERS = {"left to right": lambda positions: positions, "every second first": interleaved, "halving": halved}


@torch.inference_mode()
def under_order(
    model: AnyOrderModel,
    tokens: torch.Tensor,
    given: torch.Tensor,
    arrange: Callable[[torch.Tensor], torch.Tensor],
    window: int,
) -> tuple[float, list[float]]:
    """Nats a token of a sequence [1, N] with its targets in another order, and blind drafts' acceptance [window]."""
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
    return float(nll), [float(values[drafts.draft_depth == depth].mean()) for depth in range(1, window + 1)]


def show(*cells) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-text")
    parser.add_argument("--text", type=Path, default=DATASETS / "sample_text.txt", help="a text file, such as WikiText")
    parser.add_argument("--stories", type=Path, default=DATASETS / "stories.csv")
    parser.add_argument("--length", type=int, default=128, help="tokens of a packed sequence")
    parser.add_argument("--texts", type=int, default=4, help="packed sequences of each kind")
    parser.add_argument("--gaps", type=int, default=60, help="stories")
    parser.add_argument("--window", type=int, default=4, help="greatest depth of a draft")
    arguments = parser.parse_args()
    model, codec = load(arguments.model)
    tasks = text_tasks(codec, model.config.n_positions, arguments)
    depths = [f"depth {depth}" for depth in range(1, arguments.window + 1)]
    show("texts", "drafts", *depths)
    show("---", "---", *["---:"] * len(depths))
    for task in tasks:
        for kind, values in with_the_best_mixtures(acceptances(model, task, arguments.window)).items():
            show(task.name, kind, *(f"{value:.3f}" for value in values.tolist()))
    print()
    show("texts", "order", "nats a token", *depths, "tokens a call")
    show("---", "---", "---:", *["---:"] * len(depths), "---:")
    for task in tasks:
        sequences = [
            (tokens, given) for tokens, given, target in task.sequences if int(target.sum()) > arguments.window
        ]
        for name, arrange in ORDERS.items():
            results = [under_order(model, tokens, given, arrange, arguments.window) for tokens, given in sequences]
            nll = torch.tensor([nll for nll, _ in results])
            means = torch.tensor([values for _, values in results]).mean(0)
            committed = 1 + float(means.cumprod(0).sum())
            show(
                task.name, name, f"{nll.mean():.3f}", *(f"{value:.3f}" for value in means.tolist()), f"{committed:.2f}"
            )


if __name__ == "__main__":
    main()
