"""What `asarm infill` prints: texts, what they cost, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from asarm.filling.infiller import Filling
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.gaps import Span
from asarm.utils.config import flat


def cost_line(fillings: Sequence[Filling]) -> str:
    """What all samples together cost."""
    targets, nfe = sum(one.targets for one in fillings), sum(one.nfe for one in fillings)
    proposed, accepted = sum(sum(one.proposed) for one in fillings), sum(sum(one.accepted) for one in fillings)
    drafts = f"{accepted} of {proposed} verified drafts accepted, " if proposed else ""
    texts = f"{len(fillings)} texts, " if len(fillings) > 1 else ""
    cost = f"{targets} targets, {nfe} NFE, {targets / nfe:.2f} tokens per NFE"
    return f"{texts}{cost}, {drafts}{fillings[0].seconds:.2f} s"


def print_text(console: Console, spans: Sequence[Span]) -> None:
    """Print the filled text; on a terminal what was filled in is bold and underlined."""
    styles = {"prompt": "", "filled": "bold underline"}
    if console.is_terminal:
        console.print(Text.assemble(*((span.text, styles[span.label]) for span in spans)), soft_wrap=True)
    else:
        print("".join(span.text for span in spans), file=console.file)


def as_json(config: Any, sampler: SamplerConfig, fillings: Sequence[Filling]) -> dict[str, object]:
    """Settings, cost and texts."""
    samples = [
        {
            "seed": one.seed,
            "text": one.text,
            "spans": [span._asdict() for span in one.spans],
            "tokens": one.tokens,
            "targets": one.targets,
            "nfe": one.nfe,
            "proposed": one.proposed,
            "accepted": one.accepted,
        }
        | ({} if one.log_prob is None else {"log_prob": one.log_prob})
        | ({"trace": [asdict(step) for step in one.trace]} if one.trace else {})
        for one in fillings
    ]
    return {"infill": flat(config), "sampler": asdict(sampler), "seconds": fillings[0].seconds, "samples": samples}
