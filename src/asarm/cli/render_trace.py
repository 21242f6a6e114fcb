"""How a text grew, step by step, from the trace of a sampler: coloured on a terminal, word-diff marks elsewhere."""

import time
from collections.abc import Iterator
from itertools import accumulate

from rich.console import Console
from rich.live import Live
from rich.text import Text

from asarm.sampling import TraceStep
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import Span, label_spans

STEP_SECONDS, REPLAY_SECONDS = 0.25, 20.0  # a step on a terminal takes so long, and all of them at most so long
PLAIN_WIDTH = 40  # characters shown on either side of the news where the output is no terminal
STYLES = {
    "prompt": "",
    "filled": "bold",
    "gap": "dim",
    "accepted": "bold green",
    "rejected": "red strike",
    "added": "bold yellow",
}
# What is new in a step, marked as `git diff --word-diff` does.
MARKS = {"accepted": "{{+{}+}}", "rejected": "[-{}-]", "added": "{{+{}+}}"}


def show_trace(
    console: Console, codec: TextCodec, tokens: list[int], target: list[bool], steps: list[TraceStep]
) -> None:
    """Replay the steps: the growing text on a terminal (afterwards gone), else a line for each step."""
    texts = frames(codec, tokens, target, steps)
    if not console.is_terminal:
        for number, spans in enumerate(texts, start=1):
            console.print(f"{number:4}  {plain(trim(spans, PLAIN_WIDTH))}", soft_wrap=True, markup=False)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for number, (spans, step) in enumerate(zip(texts, steps, strict=True), start=1):
            drafts = f": {step.accepted} of {len(step.drafts)} drafts accepted" if step.drafts else ""
            text = styled(trim(spans, console.width * console.height // 3))
            live.update(text.append(f"\n\nstep {number} of {len(steps)}{drafts}", style="dim"), refresh=True)
            time.sleep(min(STEP_SECONDS, REPLAY_SECONDS / len(steps)))


def frames(codec: TextCodec, tokens: list[int], target: list[bool], steps: list[TraceStep]) -> Iterator[list[Span]]:
    """For each step the text after it, as spans whose labels are the keys of STYLES.

    tokens, target: N each, the filled text and which of it was filled. A rejected draft stands before what replaced
    it; drafts behind it were not judged and are not shown. An open place shows as ` _`.
    """
    labels = ["gap" if is_target else "prompt" for is_target in target]
    for step in steps:
        judged = list(zip(step.positions, step.drafts, strict=bool(step.drafts)))
        rejected = dict(judged[step.accepted : step.accepted + 1])
        news = dict.fromkeys(step.positions[: step.accepted], "accepted")
        news |= dict.fromkeys((position for position, _ in step.added), "added")
        for position in news:
            labels[position] = "filled"
        shown = []  # (token, label)
        for position, (token, label) in enumerate(zip(tokens, labels, strict=True)):
            if position in rejected:
                shown.append((rejected[position], "rejected"))
            shown.append((codec.mask_token_id if label == "gap" else token, news.get(position, label)))
        spans = label_spans(codec, *zip(*shown, strict=True))
        mask = codec.mask_token
        yield [Span(" _" * text.count(mask), label) if label == "gap" else Span(text, label) for text, label in spans]


def trim(spans: list[Span], width: int) -> list[Span]:
    """The spans from `width` characters before the first news to `width` behind the last."""
    ends = list(accumulate(len(span.text) for span in spans))
    starts = [0, *ends[:-1]]
    news = [index for index, span in enumerate(spans) if span.label in MARKS]
    if not news:
        return spans
    low, high = max(0, starts[news[0]] - width), ends[news[-1]] + width
    kept = [
        Span(span.text[max(0, low - start) : max(0, high - start)], span.label)
        for span, start in zip(spans, starts, strict=True)
    ]
    cut_left, cut_right = [Span("...", "prompt")] * (low > 0), [Span("...", "prompt")] * (high < ends[-1])
    return [*cut_left, *(span for span in kept if span.text), *cut_right]


def plain(spans: list[Span]) -> str:
    """One line with the news marked, and control characters escaped."""
    line = "".join(MARKS.get(span.label, "{}").format(span.text) for span in spans)
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def styled(spans: list[Span]) -> Text:
    """The spans in the colours of a terminal."""
    return Text.assemble(*((span.text, STYLES[span.label]) for span in spans))
