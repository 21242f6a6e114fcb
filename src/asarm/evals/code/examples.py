"""`CodeExample`: a problem as tokens with a gap; and estimates of the length of a gap from the visible code.

A masked line (`single-line`) is taken to be as long as the visible lines of code. A span between two random positions
in the code (`random-span`, and in whole lines `multi-line`) is some multiple of the code that is left, with a known
distribution. Lengths spread over orders of magnitude, so what is estimated from all problems is the distribution of
their logarithms (see `asarm.evals.infilling.gap_length`). Docstrings do not count: they are never masked.
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

SPAN_QUANTILES = 16  # that represent the distribution of a random span's length
DOCSTRING = re.compile(r'("""|\'\'\').*?\1', re.DOTALL)


@dataclass(kw_only=True)
class CodeExample(InfillExample):
    """A problem with its gap as tokens."""

    problem: Problem


def example_without_tokens(problem: Problem) -> CodeExample:
    """The example of a problem for systems that read no tokens."""
    return CodeExample(
        index=problem.index,
        name=problem.task_id,
        prefix_tokens=[],
        reference_tokens=[],
        suffix_tokens=[],
        visible=[],
        problem=problem,
    )


def make_example(problem: Problem, split: str, codec: TextCodec) -> CodeExample:
    """The example of a problem. Raises InputError when the problem holds the mask token.

    Prompt, solution and suffix are encoded one by one, so that no token crosses an end of the gap.
    """
    parts = problem.prompt, problem.canonical_solution, problem.suffix
    prefix_tokens, reference_tokens, suffix_tokens = (
        _encode_after(codec, "".join(parts[:index]), part) for index, part in enumerate(parts)
    )
    example = CodeExample(
        index=problem.index,
        name=problem.task_id,
        prefix_tokens=prefix_tokens,
        reference_tokens=reference_tokens,
        suffix_tokens=suffix_tokens,
        visible=visible_lengths(problem, split, codec),
        problem=problem,
    )
    return without_mask_token(example, codec, "problem")


def _encode_after(codec: TextCodec, left: str, part: str) -> list[int]:
    """Token ids of a part of a text. After white space that is written as tokens, it is encoded like a beginning."""
    begins = codec.write_white_space(left).endswith(tuple(codec.white_space_tokens.values()))
    return encode_segment(codec, part, continues=bool(left) and not begins)


def code_lines(text: str) -> list[str]:
    """The lines of code in a text, with their ends: no blank lines, no docstrings, no comments."""
    lines = DOCSTRING.sub("", text).splitlines(keepends=True)
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def visible_lengths(problem: Problem, split: str, codec: TextCodec) -> list[int]:
    """Numbers of tokens that the gap might have, according to this problem alone: those of each visible line of code
    or, for random spans, quantiles of the distribution of their lengths."""
    lines = code_lines(DOCSTRING.split(problem.prompt)[-1]) + code_lines(problem.suffix)
    tokens = [len(codec.encode(line)) for line in lines]
    if split == "single-line" or not tokens:
        return tokens
    # Between two ends anywhere in n tokens there is a share x of them, with density 2 (1 - x), and 1 - x is visible:
    # with probability q, the ratio of the two is at most 1 / sqrt(1 - q) - 1.
    ratios = [1 / math.sqrt(1 - (i + 0.5) / SPAN_QUANTILES) - 1 for i in range(SPAN_QUANTILES)]
    return [max(1, round(ratio * sum(tokens))) for ratio in ratios]


class CodeGapLengthPolicy(GapLengthPolicy):
    """Lengths of gaps in code. Problems too long for a model are truncated; their gaps leave it some context."""

    def __init__(self, every: Sequence[InfillExample], count: int, longest: int | None, capacity: int):
        """every, longest, capacity: as in GapLengthPolicy. count: the largest number of lengths that a search tries."""
        distribution = LengthDistribution.fit([log_lengths(example) for example in every])

        def propose(example: InfillExample) -> list[int]:
            quantiles = distribution.quantiles(log_lengths(example), 1, count)
            return whole_lengths([math.exp(quantile) for quantile in quantiles])

        super().__init__(every, longest, propose, capacity)

    def lengths(self, choice: str, example: InfillExample) -> list[int]:
        """As everywhere. Raises InputError for a fixed length that the model does not take."""
        length = fixed_length(choice)
        if length is not None and self.longest is not None and length >= self.longest:
            raise InputError(f"a gap of {length} tokens, but the model takes at most {self.longest} in all")
        return super().lengths(choice, example)

    def fitting(self, example: InfillExample, lengths: list[int]) -> list[int]:
        """Each at most all but one of the model's tokens."""
        return lengths if self.longest is None else sorted({min(length, self.longest - 1) for length in lengths})


def log_lengths(example: InfillExample) -> list[float]:
    """Logarithms of the example's visible lengths."""
    return [math.log(length) for length in example.visible]
