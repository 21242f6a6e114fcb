"""Batches of sequences that are given, to be predicted and hidden part by part."""

import torch

from asarm.tokenization.batch import InfillBatch, Role

ROWS = [([5, 6], [7], [8, 9]), ([], [3, 4], [])]


def batch() -> InfillBatch:
    return InfillBatch.from_parts(ROWS, [Role.GIVEN, Role.TARGET, None])


def test_parts_have_roles_and_padding_is_hidden():
    tokens, given, target = batch()
    assert tokens.tolist() == [[5, 6, 7, 8, 9], [3, 4, 0, 0, 0]]
    assert tokens.dtype == torch.long
    assert given.long().tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert target.long().tolist() == [[0, 0, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_the_mask_token_stands_at_targets_only():
    tokens, given, target = batch().masked(99)
    assert tokens.tolist() == [[5, 6, 99, 8, 9], [99, 99, 0, 0, 0]]
    assert torch.equal(given, batch().given)
    assert torch.equal(target, batch().target)


def test_rows_are_selected_and_repeated():
    twice = batch().select([1]).repeat(2).to("cpu")
    assert [part.shape for part in twice] == [(2, 5)] * 3
    assert twice.tokens.tolist() == [[3, 4, 0, 0, 0]] * 2
    assert batch().select(slice(0, 1)).tokens.tolist() == [[5, 6, 7, 8, 9]]
