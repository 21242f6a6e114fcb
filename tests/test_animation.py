"""docs/decoding_animation.py, which draws the animation in the README."""

import runpy

import pytest
from PIL import Image

from asarm.filling.infiller import Infiller
from support.paths import REPO

SCRIPT = runpy.run_path(str(REPO / "docs" / "decoding_animation.py"))


@pytest.mark.parametrize("folder", ["tiny_folder", "ending_folder"])
def test_pictures_of_a_small_model(folder, request, tmp_path):
    """Gaps of known and of unknown length: two moments an evaluation of the slower sampler, and two beside."""
    infiller = Infiller.from_pretrained(request.getfixturevalue(folder), gap_tokens=6, device="cpu")
    config = infiller.config(**SCRIPT["SETTINGS"])
    text = "Once upon a time ___ and ___ in a tree."
    pictures, milliseconds = SCRIPT["frames"](infiller, text, config, seed=0)
    plain = infiller.config(**SCRIPT["SETTINGS"] | {"sampler": "sequential"})
    ((sequential,),) = infiller.fill([infiller.parse(text)], plain, [0])
    assert len(pictures) == len(milliseconds) == 2 * sequential.nfe + 2
    assert {picture.size for picture in pictures} == {pictures[0].size}
    SCRIPT["save"](pictures, milliseconds, tmp_path / "decoding.gif")
    with Image.open(tmp_path / "decoding.gif") as animation:
        assert animation.size == pictures[0].size
        assert animation.n_frames > sequential.nfe


def test_steps_of_a_player():
    """By hand: two drafts of three are accepted, the third is replaced; then the network draws one by itself."""
    gap, step = [" _ _ _ _", "gap"], SCRIPT["Step"]
    after = [[" a b", "accepted"], [" x", "rejected"], [" c", "added"], [" _", "gap"]]
    frames = [
        {"nfe": 0, "drafts": 0, "accepted": 0, "spans": [["The", "prompt"], gap]},
        {"nfe": 1, "drafts": 3, "accepted": 2, "spans": [["The", "prompt"], *after]},
        {"nfe": 2, "drafts": 3, "accepted": 2, "spans": [["The a b c", "filled"], [" d", "added"]]},
    ]
    steps = list(SCRIPT["steps_of"]({"frames": frames}, 4))
    assert steps == [step(0, 2, 3, " x"), step(3, 3, 4, "")]
    moments = SCRIPT["moments_of"](steps)
    assert [(moment.nfe, moment.is_drafting) for moment in moments] == [
        (0, False), (0, True), (1, False), (1, True), (2, False), (2, False),
    ]  # fmt: skip


def test_the_animation_is_there_and_small():
    path = REPO / "docs" / "decoding.gif"
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as animation:
        assert animation.n_frames > 20
        assert animation.info["loop"] == 0
