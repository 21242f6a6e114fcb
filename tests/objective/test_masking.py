"""Which tokens of a training sequence are masked."""

from itertools import pairwise

import pytest
import torch

from asarm.objective.masking import MaskingConfig, MaskingPattern, training_targets
from asarm.tokenization.batch import PADDING


def span_targets_by_hand(target):
    """Spans of as many targets from the first one on."""
    first, positions = target.long().argmax(1, keepdim=True), torch.arange(target.shape[1])
    return (positions >= first) & (positions < first + target.sum(1, keepdim=True))


def test_a_share_of_the_sequences_has_its_targets_in_one_span():
    target = training_targets(torch.zeros(400, 20), 0.3, MaskingPattern(0.5), torch.Generator().manual_seed(0))
    assert (target.sum(1) == 6).all()
    starts = (target & ~torch.nn.functional.pad(target, (1, 0))[:, :-1]).sum(1)  # spans of each sequence
    assert 160 < int((starts == 1).sum()) < 250
    first = target.long().argmax(1)[starts == 1]
    assert set(first.tolist()) == set(range(15))  # wherever a span of 6 fits
    every = training_targets(torch.zeros(50, 20), 0.3, MaskingPattern(1.0), torch.Generator().manual_seed(0))
    assert torch.equal(every, span_targets_by_hand(every))


def test_a_share_of_the_sequences_has_its_targets_in_whole_lines():
    newline, eos = 1, 2
    tokens = torch.randint(0, 12, (200, 60), generator=torch.Generator().manual_seed(0))
    target = training_targets(
        tokens, 0.4, MaskingPattern(lines=1.0, line_ends=[newline, eos]), torch.Generator().manual_seed(1)
    )
    assert (target.sum(1) == 24).all()
    masked = set()  # numbers of lines
    for sequence, chosen in zip(tokens.tolist(), target.tolist(), strict=True):
        ends = [-1, *(i for i, token in enumerate(sequence) if token in (newline, eos)), len(sequence) - 1]
        lines = [chosen[start + 1 : end + 1] for start, end in pairwise(ends) if end > start]
        in_part = [line for line in lines if any(line) and not all(line)]
        assert len(in_part) <= 1
        assert all(line == sorted(line) for line in in_part)  # what is masked of it is its end
        whole = {index for index, line in enumerate(lines) if all(line)}
        parities = [{index for index in range(len(lines)) if index % 2 == parity} for parity in (0, 1)]
        assert any(whole <= parity or whole >= parity - {len(lines) - 1} for parity in parities)
        masked |= whole
    assert masked >= set(range(5))  # lines anywhere
    mixed = training_targets(tokens, 0.4, MaskingPattern(0.3, 0.5, [newline, eos]), torch.Generator().manual_seed(1))
    assert 60 < int((mixed == target).all(1).sum()) < 140
    assert 30 < int((mixed == span_targets_by_hand(mixed)).all(1).sum()) < 90


@pytest.mark.parametrize("pattern", [MaskingPattern(), MaskingPattern(1.0), MaskingPattern(0.0, 1.0, [1, 2])])
def test_padding_is_never_masked(pattern):
    """A share of each text's own tokens is; in one span, or at the ends of lines, within the text."""
    lengths = torch.tensor([20, 13, 7, 2, 1] * 40)[:, None]
    tokens = torch.randint(0, 9, (200, 20), generator=torch.Generator().manual_seed(0))
    tokens[torch.arange(20) >= lengths] = PADDING
    target = training_targets(tokens, 0.5, pattern, torch.Generator().manual_seed(1))
    assert target.sum(1).tolist() == [10, 6, 3, 1, 1] * 40
    assert not target[tokens == PADDING].any()
    if pattern.spans:
        assert torch.equal(target, span_targets_by_hand(target))
        assert set(target[1::5].long().argmax(1).tolist()) == set(range(8))  # wherever a span of 6 fits into 13
    same = training_targets(tokens[::5], 0.5, pattern, torch.Generator().manual_seed(1))
    assert same.sum(1).tolist() == [10] * 40


def test_masking_rates():
    config = MaskingConfig(mask_start=0.2, mask_low=0.6, mask_high=0.8, mask_warmup_steps=10)
    assert config.rate(0, 0.7) == pytest.approx(0.2)
    assert config.rate(5, 0.0) == pytest.approx(0.4)
    assert config.rate(5, 1.0) == pytest.approx(0.5)
    assert config.rate(99, 0.5) == pytest.approx(0.7)
    for wrong in ({"mask_low": 0.0}, {"mask_high": 1.0}, {"mask_low": 0.9, "mask_high": 0.5}):
        with pytest.raises(ValueError, match="mask_"):
            MaskingConfig(**wrong)
