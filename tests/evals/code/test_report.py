"""The page of samples."""

from support.code_problems import ROWS, SPAN_ROWS
from support.results import read_page


def test_the_page_of_samples_is_whole_and_escaped(finished):
    text_of_page, tags = read_page(finished / "samples.html")
    assert not tags & {"b", "i", "x", "script"}
    for row in ROWS + SPAN_ROWS:
        assert row["prompt"] + "___" + row["suffix"] in text_of_page
        assert row["canonical_solution"] in text_of_page
    assert "failed: AssertionError <x>" in text_of_page
    assert "passed; exact match" in text_of_page
