"""Problems as tokens with a gap, the lengths that are proposed for gaps, and how context is truncated."""

import numpy as np
import pytest

from asarm.evals.code.data import read_problems
from asarm.evals.code.examples import CodeGapLengthPolicy, make_example, visible_lengths
from asarm.evals.infilling.example import InfillExample, truncate_context
from asarm.models.load import load
from asarm.tokenization.gaps import text_after
from asarm.utils.errors import InputError
from support.code_problems import (
    OFFICIAL,
    OWN,
    ROWS,
    SPAN_ROWS,
    infill_example,
    needs_official,
    problem_row,
    problems_of,
)


@pytest.mark.parametrize("kind", ["byte-level", "white space"])
def test_the_joined_parts_are_the_program(kind, tiny_folder, code_codec):
    codec = load(tiny_folder)[1] if kind == "byte-level" else code_codec
    problems = problems_of(ROWS) + problems_of(SPAN_ROWS) + [p for path in OWN for p in read_problems(path)]
    for problem in problems:
        example = make_example(problem, "single-line", codec)
        joined = example.prefix_tokens + example.reference_tokens + example.suffix_tokens
        whole = problem.source(problem.canonical_solution)
        if kind == "byte-level":
            assert codec.decode(joined) == whole
            assert text_after(codec, example.prefix_tokens, example.reference_tokens) == problem.canonical_solution
        elif problem.prompt.endswith("\n"):
            assert codec.decode(joined) == codec.decode(codec.encode(whole))
            assert joined == codec.encode(whole)


@needs_official
def test_official_programs_round_trip_through_a_byte_level_tokenizer():
    codec = load("tiny-text")[1]
    for path in OFFICIAL:
        for problem in read_problems(path)[::7]:
            example = make_example(problem, "single-line", codec)
            joined = example.prefix_tokens + example.reference_tokens + example.suffix_tokens
            assert codec.decode(joined) == problem.source(problem.canonical_solution)


def test_a_gap_in_a_line_is_decoded_in_its_context(code_codec):
    """SentencePiece drops the first space of a text, but a gap does not begin a text."""
    prefix, gap = code_codec.encode("    return"), code_codec.encode(" b")
    assert code_codec.decode(gap) == "b"
    assert text_after(code_codec, prefix, gap) == " b"
    assert text_after(code_codec, [], gap) == "b"


def test_half_a_character_does_not_cross_the_end_of_the_gap(tiny_folder):
    codec = load(tiny_folder)[1]
    ids = codec.encode("\u03c0")
    assert len(ids) == 2
    assert text_after(codec, codec.encode("a = '"), ids[:1]) == "\ufffd"
    assert text_after(codec, codec.encode("a = '"), ids) == "\u03c0"


def test_visible_lengths_are_of_the_kind_of_the_gap(tiny_folder):
    codec = load(tiny_folder)[1]
    prompt = 'import os\n\ndef f(a):\n    """Add.\n\n    A long story.\n    """\n    # so\n    b = a\n\n    c = b\n'
    problem = problems_of([problem_row(0, prompt, "    d = c\n", "    return d\n")])[0]
    sizes = [len(codec.encode(line)) for line in ("    b = a\n", "    c = b\n", "    return d\n")]
    assert visible_lengths(problem, "single-line", codec) == sizes
    # A span between two random positions in n tokens, as a multiple of the tokens that are left.
    total, rng = sum(sizes), np.random.default_rng(0)
    share = np.abs(np.diff(rng.uniform(size=(100_000, 2)), axis=1))
    expected = np.quantile(total * share / (1 - share), (np.arange(16) + 0.5) / 16)
    for split in ("multi-line", "random-span", "random-span-light"):
        assert visible_lengths(problem, split, codec) == pytest.approx(expected.clip(1), rel=0.05, abs=0.6)
    nothing = problems_of([problem_row(0, 'def f(a):\n    """Add."""\n', "    return a\n", "")])[0]
    assert visible_lengths(nothing, "random-span", codec) == []


def test_lengths_are_proposed_from_the_visible_code():
    rng = np.random.default_rng(0)
    examples = [infill_example(visible=rng.lognormal(2.5, 0.5, 6).clip(1).astype(int)) for _ in range(300)]
    policy = CodeGapLengthPolicy(examples, 5, None, 48)
    found = policy.lengths("search", examples[0])
    drawn = rng.lognormal(2.5, 0.5, 100_000)
    assert found == pytest.approx(np.quantile(drawn, [0.1, 0.3, 0.5, 0.7, 0.9]), rel=0.15)
    assert policy.lengths("search", infill_example()) == pytest.approx(found, abs=2)  # nothing is visible
    far = [infill_example(visible=[10] * 6), infill_example(visible=[40] * 6)]
    assert CodeGapLengthPolicy(far, 3, None, 48).lengths("search", far[1]) == [40]
    assert policy.lengths("oracle", infill_example(reference=17)) == [17]
    assert CodeGapLengthPolicy(examples, 5, 16, 48).lengths("oracle", infill_example(reference=17)) == [15]
    with pytest.raises(InputError, match="a gap of 16 tokens, but the model takes at most 16"):
        CodeGapLengthPolicy(examples, 5, 16, 48).lengths("fixed:16", examples[0])


@pytest.mark.parametrize(
    ("prefix", "suffix", "length", "kept"),
    [
        (50, 40, 10, (50, 40)),
        (60, 60, 10, (45, 45)),
        (80, 30, 11, (59, 30)),
        (20, 90, 10, (20, 70)),
        (9, 9, 99, (1, 0)),
    ],
)
def test_long_contexts_are_truncated_at_their_far_ends(prefix, suffix, length, kept):
    example = InfillExample(index=0, name="a", visible=[], prefix_tokens=list(range(prefix)), reference_tokens=[1],
                 suffix_tokens=list(range(suffix)))  # fmt: skip
    found = truncate_context(example, length, 100)
    assert found.prefix_tokens == list(range(prefix))[prefix - kept[0] :]
    assert found.suffix_tokens == list(range(suffix))[: kept[1]]
    assert truncate_context(example, length, None) is example
