"""Which texts are kept to train on."""

import pytest

from asarm.data.writing.filters import SLURS, fit_text, has_slur, repeats_itself, trimmed, whole_functions

WORDS = [w for line in SLURS.read_text().splitlines() if not line.startswith("#") for w in line.split()]
STORY = "Tom lost his keys in the park. He looked under every bench. A girl had found them and gave them back."


def test_every_slur_is_found_as_a_whole_word_in_any_case():
    assert [word.lower() for word in WORDS] == WORDS
    for word in WORDS:
        assert has_slur(f'He said: "{word.upper()}s"' if not word.endswith("s") else word) or has_slur(word)
        assert has_slur(f"the_{word.replace('-', ' ')}'s")
        assert not has_slur(f"x{word}")
        assert not has_slur(f"{word}x")


def test_innocent_words_are_no_slurs():
    for text in (
        "a chink in the wall",
        "sniggered",
        "raccoons",
        "a niggardly man",
        "the retarded clock",
        "Japan",
        "wops_",
    ):
        assert has_slur(text) == (text == "wops_")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (STORY, STORY),
        (f"Here is a short story about Tom:\n\n{STORY}", STORY),
        (f"Sure! Here's a story:\n{STORY}", STORY),
        (f"{STORY} Then he went to the", STORY),
        (f"{STORY}\n\nThis story shows that honesty pays.", STORY),
        ("no sentence ends here", ""),
    ],
)
def test_texts_are_trimmed(text, kept):
    assert trimmed(text) == kept


@pytest.mark.parametrize(
    "text",
    ["", "Too short.", f"As an AI, I have no keys. {STORY}", f"Dear [Your Name], {STORY}", "He was happy. " * 9,
     f"The {WORDS[0]} went home. {STORY}", "Это не по-английски. " + STORY],
)  # fmt: skip
def test_other_texts_are_left_out(text):
    assert fit_text(text) == ""


def test_repetition_is_found():
    assert not repeats_itself(STORY)
    assert repeats_itself("the dog's dad's " + "dad's " * 20)


def test_functions_are_kept_whole():
    good = 'def double(x):\n    """Return twice x."""\n    return 2 * x'
    code = f"```python\n{good}\n```\nIt doubles.\ndef bare(x):\n    return x\n\n# next\ndef cut(x):\n    '"
    assert whole_functions(code) == [good]
