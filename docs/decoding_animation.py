"""Draw docs/decoding.gif, the animation in the README: one text filled by `fused` and by `sequential`, side by side.

    python docs/decoding_animation.py

It plays the trace of a real decoding, as `asarm infill --html` does: of SmolLM2 with the adapter `smollm2-text`, in
float32. One step of time is one evaluation of the network, for both. They verify drafts by the gumbel coupling, so that
the seed alone decides the text, and both write the same.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from asarm.filling.infiller import Filling, Infiller
from asarm.filling.page import player_of, sequential_player
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import label_spans

TEXT = "A small robot lived in ___ Every day it went to ___ One day it met ___ They became good friends."
SEED, SETTINGS = 11, {"sampler": "fused", "coupling": "gumbel", "k": 5, "temperature": 0.7, "top_p": 0.9}

PANEL, MARGIN, TOP, PITCH = 580, 24, 118, 62  # pixels: width of a text, around it, above it, from line to line
START, DRAFTS, VERDICTS, END = 1200, 150, 230, 3000  # milliseconds: before, of each evaluation, after
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
TEXT_FONT, FILLED_FONT, TITLE_FONT, SMALL_FONT = (
    ImageFont.truetype(FONTS / f"DejaVuSans{style}.ttf", size)
    for style, size in (("", 22), ("-Bold", 22), ("-Bold", 24), ("", 18))
)
INK, SOFT, DRAFT, REJECTED, DONE = "#1f2328", "#8c959f", "#0969da", "#cf222e", "#2da44e"
MARKED = {"accepted": "#b7f0c1", "added": "#ffe38a"}  # backgrounds
LEGEND = [("draft", DRAFT, None), ("accepted", INK, "accepted"), ("rejected", REJECTED, None)]
LEGEND += [("drawn by the network itself", INK, "added"), ("| end of a gap", INK, None)]
END_MARK = "|"


class Slot(NamedTuple):
    """Where a token is drawn: its text, left end and width in pixels, its line, and its number as a target, if one."""

    text: str
    x: float
    width: float
    line: int
    target: int | None


class Step(NamedTuple):
    """What one evaluation of the network decided: targets from `before` to `kept` by accepted drafts, from there to
    `decided` by the network itself. rejected: the draft for target `kept` that was rejected, or ""."""

    before: int
    kept: int
    decided: int
    rejected: str


class Moment(NamedTuple):
    """What is shown: a step, either its drafts or its verdicts, and the evaluations so far."""

    nfe: int
    step: Step
    is_drafting: bool


def pieces_of(codec: TextCodec, filling: Filling) -> list[tuple[str, int | None]]:
    """The text of each token that is shown, and its number as a target, if it is one. The first token that ends a gap
    shows as END_MARK; further ones, which were not drawn, are left out."""
    texts = {
        int(index): text for text, index in label_spans(codec, filling.tokens, [*map(str, range(len(filling.tokens)))])
    }
    pieces, target, has_ended = [], 0, False
    for index, (token, is_target) in enumerate(zip(filling.tokens, filling.target, strict=True)):
        is_end = is_target and token == codec.gap_end_token_id
        text = END_MARK if is_end and not has_ended else texts.get(index, "")
        if text:
            pieces.append((text, target if is_target else None))
        target, has_ended = target + is_target, is_end
    return pieces


def lay_out(pieces: Sequence[tuple[str, int | None]]) -> list[Slot]:
    """The final text in lines, of which no word is broken, so that nothing moves while gaps are filled."""
    starts = [index for index, (text, _) in enumerate(pieces) if index == 0 or text.startswith(" ")]
    slots: list[Slot] = []
    x, line = 0.0, 0
    for start, stop in pairwise([*starts, len(pieces)]):
        word = pieces[start:stop]
        if x > 0 and x + sum(font_of(target).getlength(text) for text, target in word) > PANEL:
            x, line = 0.0, line + 1
        for text, target in word:
            text = text if x > 0 else text.lstrip()
            slots.append(Slot(text, x, font_of(target).getlength(text), line, target))
            x += slots[-1].width
    return slots


def font_of(target: int | None) -> ImageFont.FreeTypeFont:
    return TEXT_FONT if target is None else FILLED_FONT


def steps_of(player: dict[str, Any], targets: int) -> Iterator[Step]:
    """The steps of a player of `asarm.filling.page`, whose targets are decided in ascending position."""
    before = accepted = 0
    for frame in player["frames"][1:]:
        spans = frame["spans"]
        decided = targets - sum(text.count("_") for text, label in spans if label == "gap")
        rejected = "".join(text for text, label in spans if label == "rejected")
        yield Step(before, before + frame["accepted"] - accepted, decided, rejected)
        before, accepted = decided, frame["accepted"]


def draw_text(draw: ImageDraw.ImageDraw, left: int, slots: Sequence[Slot], step: Step, is_drafting: bool) -> None:
    """The text in one step: while it drafts, drafts hover above their slots; then what has become of them."""
    for slot in slots:
        x, y, space = left + slot.x, TOP + PITCH * slot.line, TEXT_FONT.getlength(" ") * slot.text.startswith(" ")
        word, end, font = slot.text.strip(), left + slot.x + slot.width, font_of(slot.target)
        if slot.target is None or slot.target < step.before:
            draw.text((x + space, y), word, INK, font)
            continue
        is_rejected = slot.target == step.kept and step.rejected
        if slot.target < step.kept or is_rejected:
            draft = step.rejected.strip() if is_rejected else word
            if is_drafting or is_rejected:
                draw.text((x + space, y - 22), draft, DRAFT if is_drafting else REJECTED, SMALL_FONT)
            if is_rejected and not is_drafting:
                length = SMALL_FONT.getlength(draft)
                draw.line((x + space, y - 11, x + space + length, y - 11), REJECTED, 2)
        if slot.target < step.decided and not is_drafting:
            colour = MARKED["accepted" if slot.target < step.kept else "added"]
            draw.rectangle((x + space - 2, y - 1, end, y + 27), colour)
            draw.text((x + space, y), word, INK, font)
        else:
            draw.line((x + space, y + 25, end - 1, y + 25), SOFT, 2)


def moments_of(steps: Sequence[Step]) -> list[Moment]:
    """Before all evaluations; of each the moment of drafting and that of its verdicts; and after all."""
    found, total = [Moment(0, Step(0, 0, 0, ""), False)], steps[-1].decided
    for number, step in enumerate(steps, start=1):
        found += [Moment(number - 1, step, True), Moment(number, step, False)]
    return [*found, Moment(len(steps), Step(total, total, total, ""), False)]


def draw_panel(draw: ImageDraw.ImageDraw, left: int, title: str, slots: Sequence[Slot], moment: Moment) -> None:
    """One sampler."""
    nfe, step, is_drafting = moment
    targets = [slot.target for slot in slots if slot.target is not None]
    total, until = len(targets), step.before if is_drafting else step.decided
    decided = sum(target < until for target in targets)
    is_done = decided == total
    counts = f"{decided} of {total} tokens after {nfe} NFE" + " \N{CHECK MARK}" * is_done
    draw.text((left, MARGIN), title, INK, TITLE_FONT)
    draw.text((left, MARGIN + 36), counts, DONE if is_done else SOFT, TEXT_FONT)
    draw_text(draw, left, slots, step, is_drafting)


def draw_legend(draw: ImageDraw.ImageDraw, y: int) -> None:
    """What the colours mean."""
    x = float(MARGIN)
    for name, colour, background in LEGEND:
        length = SMALL_FONT.getlength(name)
        if background:
            draw.rectangle((x - 3, y - 1, x + length + 2, y + 23), MARKED[background])
        draw.text((x, y), name, colour, SMALL_FONT)
        if name == "rejected":
            draw.line((x, y + 11, x + length, y + 11), colour, 2)
        x += length + 28
    note = "NFE: evaluations of the network"
    draw.text((2 * PANEL + 3 * MARGIN - SMALL_FONT.getlength(note), y), note, SOFT, SMALL_FONT)


def frames(infiller: Infiller, text: str, config: SamplerConfig, seed: int) -> tuple[list[Image.Image], list[int]]:
    """The pictures, and how long each is shown (milliseconds)."""
    ((filling,),) = infiller.fill([infiller.parse(text)], config, [seed], trace=True)
    players = [player_of(infiller, config, filling), *sequential_player(infiller, text, config, filling, None)]
    slots = lay_out(pieces_of(infiller.codec, filling))
    panels = [moments_of(list(steps_of(player, sum(filling.target)))) for player in players]
    height = TOP + PITCH * (slots[-1].line + 1) + 40
    pictures = []
    for index in range(max(map(len, panels))):
        picture = Image.new("RGB", (2 * PANEL + 4 * MARGIN, height), "white")
        draw = ImageDraw.Draw(picture)
        for number, (player, moments) in enumerate(zip(players, panels, strict=True)):
            left = MARGIN + number * (PANEL + 2 * MARGIN)
            draw_panel(draw, left, player["name"].split(",")[0], slots, moments[min(index, len(moments) - 1)])
        draw_legend(draw, height - 40)
        pictures.append(picture)
    return pictures, [START, *[DRAFTS, VERDICTS] * (len(pictures) // 2 - 1), END]


def save(pictures: Sequence[Image.Image], milliseconds: Sequence[int], path: Path) -> None:
    """As an animation in few colours, the same for all pictures, that begins again at its end."""
    width, height = pictures[0].size
    some = pictures[:: max(1, len(pictures) // 8)]
    sheet = Image.new("RGB", (width, height * len(some)))
    for index, picture in enumerate(some):
        sheet.paste(picture, (0, height * index))
    palette = sheet.quantize(48)
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    first.save(path, save_all=True, append_images=others, duration=list(milliseconds), loop=0, optimize=True)


def main() -> None:
    infiller = Infiller.from_pretrained("smollm2-text", device="cpu", dtype="float32")
    pictures, milliseconds = frames(infiller, TEXT, infiller.config(**SETTINGS), SEED)
    path = Path(__file__).with_name("decoding.gif")
    save(pictures, milliseconds, path)
    print(path, f"{path.stat().st_size / 1000:.0f} kB, {len(pictures)} pictures, {sum(milliseconds) / 1000:.1f} s")


if __name__ == "__main__":
    main()
