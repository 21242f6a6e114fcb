"""Show the trace of a sampler step by step: in colours on a terminal, with word-diff marks elsewhere."""

import time
from collections.abc import Iterable, Iterator
from itertools import accumulate

from rich.console import Console
from rich.live import Live
from rich.text import Text

from asarm.sampling import TraceStep
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import Span, label_spans

STEP_SECONDS, REPLAY_SECONDS = 0.25, 20.0  # on a terminal: of one step, and at most of all steps together
PLAIN_WIDTH = 40  # characters shown on either side of what is new where the output is no terminal
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
    """Replay the steps: on a terminal as a growing text, cleared at the end; elsewhere as a line for each step.

    tokens, target: N each, as in `frames`.
    """
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


def frames(codec: TextCodec, tokens: list[int], target: list[bool], steps: Iterable[TraceStep]) -> Iterator[list[Span]]:
    """For each step the text after it, as spans whose labels are the keys of STYLES.

    tokens, target: N each, the filled sequence and where it was filled in. A rejected draft is shown before the token
    that replaced it; drafts after it were not verified and are not shown. An open position is shown as ` _`.
    """
    labels = ["gap" if is_target else "prompt" for is_target in target]
    for step in steps:
        verified = list(zip(step.positions, step.drafts, strict=bool(step.drafts)))
        rejected = dict(verified[step.accepted : step.accepted + 1])
        new = dict.fromkeys(step.positions[: step.accepted], "accepted")
        new |= dict.fromkeys((position for position, _ in step.added), "added")
        for position in new:
            labels[position] = "filled"
        shown: list[tuple[int, str]] = []  # (token, label)
        for position, (token, label) in enumerate(zip(tokens, labels, strict=True)):
            if position in rejected:
                shown.append((rejected[position], "rejected"))
            shown.append((codec.mask_token_id if label == "gap" else token, new.get(position, label)))
        shown_tokens, shown_labels = zip(*shown, strict=True)
        spans = label_spans(codec, shown_tokens, shown_labels)
        mask = codec.mask_token
        yield [Span(" _" * text.count(mask), label) if label == "gap" else Span(text, label) for text, label in spans]


def trim(spans: list[Span], width: int) -> list[Span]:
    """The spans from `width` characters before the first new one to `width` after the last."""
    ends = list(accumulate(len(span.text) for span in spans))
    starts = [0, *ends[:-1]]
    new = [index for index, span in enumerate(spans) if span.label in MARKS]
    if not new:
        return spans
    low, high = max(0, starts[new[0]] - width), ends[new[-1]] + width
    kept = [
        Span(span.text[max(0, low - start) : max(0, high - start)], span.label)
        for span, start in zip(spans, starts, strict=True)
    ]
    cut_left, cut_right = [Span("...", "prompt")] * (low > 0), [Span("...", "prompt")] * (high < ends[-1])
    return [*cut_left, *(span for span in kept if span.text), *cut_right]


def plain(spans: list[Span]) -> str:
    """One line with marks around what is new, and control characters escaped."""
    line = "".join(MARKS.get(span.label, "{}").format(span.text) for span in spans)
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def styled(spans: list[Span]) -> Text:
    """The spans in a terminal's colours."""
    return Text.assemble(*((span.text, STYLES[span.label]) for span in spans))
