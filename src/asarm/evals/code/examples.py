"""A problem as tokens with a gap, and how long its gap might be, told by the visible code.

A masked line (`single-line`) is taken to be as long as the visible lines of code. A stretch between two places of the
code that were picked at random (`random-span`, and in whole lines `multi-line`) is some multiple of what is left of the
code, with a distribution that is known. Lengths spread over orders of magnitude, so it is the distribution of their
logarithms that is learned from all problems (see `asarm.evals.infilling.gap_length`). Docstrings do not count, for they
are never masked.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from asarm.evals.code.data import Problem
from asarm.evals.infilling.config import fixed_length
from asarm.evals.infilling.example import InfillExample, without_mask_token
from asarm.evals.infilling.gap_length import LengthDistribution, whole_lengths
from asarm.evals.infilling.systems import GapLengthPolicy
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import encode_segment
from asarm.utils.errors import InputError

STRETCHES = 16  # quantiles that stand for the law of a stretch
DOCSTRING = re.compile(r'("""|\'\'\').*?\1', re.DOTALL)


@dataclass(kw_only=True)
class CodeExample(InfillExample):
    """A problem with its gap as tokens."""

    problem: Problem


def uncut(problem: Problem) -> CodeExample:
    """A problem for what needs no tokens."""
    empty = {name: [] for name in ("prefix_tokens", "reference_tokens", "suffix_tokens", "visible")}
    return CodeExample(index=problem.index, name=problem.task_id, problem=problem, **empty)


def cut(problem: Problem, split: str, codec: TextCodec) -> CodeExample:
    """A problem with its gap; InputError when it holds the mask token.

    Prompt, solution and suffix are encoded apart, so that no token reaches over the gap's ends.
    """
    parts = problem.prompt, problem.canonical_solution, problem.suffix
    prefix_tokens, reference_tokens, suffix_tokens = (
        _encode_behind(codec, "".join(parts[:place]), part) for place, part in enumerate(parts)
    )
    gap = CodeExample(
        index=problem.index,
        name=problem.task_id,
        prefix_tokens=prefix_tokens,
        reference_tokens=reference_tokens,
        suffix_tokens=suffix_tokens,
        visible=visible_lengths(problem, split, codec),
        problem=problem,
    )
    return without_mask_token(gap, codec, "problem")


def _encode_behind(codec: TextCodec, left: str, part: str) -> list[int]:
    """Token ids of a part of a text. Behind white space that is written as tokens, it begins anew."""
    anew = codec.write_white_space(left).endswith(tuple(codec.written.values())) if codec.written else False
    return encode_segment(codec, part, continues=bool(left) and not anew)


def code_lines(text: str) -> list[str]:
    """The lines of code in a text, with their ends: no blank ones, no docstrings, no comments."""
    lines = DOCSTRING.sub("", text).splitlines(keepends=True)
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def visible_lengths(problem: Problem, split: str, codec: TextCodec) -> list[int]:
    """Tokens that the gap might have, judging by this problem alone: those of each visible line of code, or for
    stretches quantiles of their law."""
    lines = code_lines(DOCSTRING.split(problem.prompt)[-1]) + code_lines(problem.suffix)
    tokens = [len(codec.encode(line)) for line in lines]
    if split == "single-line" or not tokens:
        return tokens
    # Between two ends anywhere in n tokens lies the share x of them with density 2 (1 - x), and 1 - x is visible: with
    # probability q, the ratio of the two is at most 1 / sqrt(1 - q) - 1.
    ratios = [1 / math.sqrt(1 - (i + 0.5) / STRETCHES) - 1 for i in range(STRETCHES)]
    return [max(1, round(ratio * sum(tokens))) for ratio in ratios]


class CodeGapLengthPolicy(GapLengthPolicy):
    """Lengths of gaps in code. Problems that are too long for a model are cut; their gaps leave it some context."""

    def __init__(self, every: Sequence[CodeExample], count: int, longest: int | None):
        """count: most lengths that a search tries."""
        law = LengthDistribution.learn([[math.log(length) for length in gap.visible] for gap in every])

        def propose(gap: CodeExample) -> list[int]:
            quantiles = law.quantiles([math.log(length) for length in gap.visible], 1, count)
            return whole_lengths([math.exp(quantile) for quantile in quantiles])

        super().__init__(every, longest, propose)

    def tried(self, choice: str, gap: CodeExample) -> list[int]:
        """As everywhere; InputError for a fixed length that the model does not take."""
        length = fixed_length(choice)
        if length is not None and self.longest is not None and length >= self.longest:
            raise InputError(f"a gap of {length} tokens, but the model takes at most {self.longest} in all")
        return super().tried(choice, gap)

    def fitting(self, gap: CodeExample, lengths: list[int]) -> list[int]:
        """Each at most all but one of the model's tokens."""
        return lengths if self.longest is None else sorted({min(length, self.longest - 1) for length in lengths})
