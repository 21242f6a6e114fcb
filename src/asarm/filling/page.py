"""A page of its own that plays a decoding, beside the sequential sampler's of the same text.

One step of time is one evaluation of the network, for both. All texts are data in JSON, shown as text by the script, so
that whatever they hold is never markup; nothing is loaded from elsewhere.
"""

import html
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from typing import Any

import torch

from asarm.filling.infiller import Filling, Infiller
from asarm.filling.render_trace import frames
from asarm.sampling import TraceStep
from asarm.sampling.config import SamplerConfig

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'self'"


def comparison_page(
    infiller: Infiller, text: str, config: SamplerConfig, filling: Filling, allowed: torch.Tensor | None = None
) -> str:
    """The page for a filling of a text, which has a trace. The sequential sampler fills the text once more."""
    return page([player_of(infiller, config, filling), *sequential_player(infiller, text, config, filling, allowed)])


def sequential_player(
    infiller: Infiller, text: str, config: SamplerConfig, filling: Filling, allowed: torch.Tensor | None
) -> list[dict[str, Any]]:
    """The same text by the sequential sampler with the same seed; nothing, if the filling is by that already."""
    if config.sampler == "sequential":
        return []
    plain = replace(config, sampler="sequential", adaptive=False, tolerance=0.0)
    ((other,),) = infiller.fill([infiller.parse(text)], plain, [filling.seed], allowed=allowed, trace=True)
    return [player_of(infiller, plain, other)]


def player_of(infiller: Infiller, config: SamplerConfig, filling: Filling) -> dict[str, Any]:
    """What the page plays of one filling: {"name", "targets", "frames"}, with frames as in `frames_of`."""
    name = config.sampler
    if name in ("assd", "fused"):
        name += f", {config.coupling} verification, " + (
            "windows of adaptive length" if config.adaptive else f"k={config.k}"
        )
    return {"name": name, "targets": filling.targets, "frames": list(frames_of(infiller, config, filling))}


def frames_of(infiller: Infiller, config: SamplerConfig, filling: Filling) -> Iterator[dict[str, Any]]:
    """The text before the first step and after each: {"nfe", "drafts", "accepted", "spans"}.

    spans: [text, label] with labels as in `asarm.filling.render_trace.frames`. The others are totals so far; of drafts
    those that were verified.
    """
    steps = [TraceStep([], [], 0, []), *(filling.trace or [])]
    nfe = drafts = accepted = 0
    for number, (step, spans) in enumerate(
        zip(steps, frames(infiller.codec, filling.tokens, filling.target, steps), strict=True)
    ):
        nfe += evaluations_of(step, config) if number else 0
        drafts, accepted = drafts + min(len(step.drafts), step.accepted + 1), accepted + step.accepted
        shown = [[span.text, span.label] for span in spans]
        yield {"nfe": nfe, "drafts": drafts, "accepted": accepted, "spans": shown}


def evaluations_of(step: TraceStep, config: SamplerConfig) -> int:
    """Evaluations of the network in a step: two where ASSD drafts by the model more than the token that is sure."""
    return 2 if config.sampler == "assd" and config.draft != "ngram" and len(step.drafts) > 1 else 1


def page(players: list[dict[str, Any]], form: str = "", message: str = "") -> str:
    """The page. form: HTML before the players. message: text that is shown first."""
    data = json.dumps(players).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    template = resources.files("asarm.filling").joinpath("page.html").read_text(encoding="utf-8")
    parts = {"POLICY": POLICY, "FORM": form, "MESSAGE": html.escape(message), "DATA": data}
    before, *rest = template.split("{{")
    for piece in rest:
        name, _, after = piece.partition("}}")
        before += parts[name] + after
    return before
