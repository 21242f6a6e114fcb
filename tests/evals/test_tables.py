"""Numbers in tables."""

import pytest

from asarm.evals.tables import FEWEST, aligned, counted, markdown_table, short_names, with_interval


@pytest.mark.parametrize(("n", "shown"), [(FEWEST, "25.0 [10.0, 40.0]"), (FEWEST - 1, "25.0")])
def test_intervals_are_shown_from_twenty_items(n, shown):
    assert with_interval({"mean": 0.25, "interval_95": [0.1, 0.4], "n": n}, 1, 100) == shown


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["one/ASARM@nlp", "xlnet/xlnet-base-cased"], ["ASARM@nlp", "xlnet-base-cased"]),
        (["a/x", "b/x"], ["a/x", "b/x"]),
        (["a/x@refs/pr/1", "tiny-text"], ["x@refs/pr/1", "tiny-text"]),
        (["/folder/run/", "/folder/other"], ["run/", "other"]),
    ],
)
def test_short_names(models, expected):
    assert list(short_names(models).values()) == expected


@pytest.mark.parametrize(("count", "shown"), [(0, "0 stories"), (1, "1 story"), (1871, "1,871 stories")])
def test_counts_of_one_and_of_several(count, shown):
    assert counted(count, "stories") == shown


def test_tables_in_a_text_line_up():
    text = (
        "About:\n\n"
        + markdown_table(["model", "by", "score"], [["long name", "one", "1"], ["b", "two", "10.5"]])
        + "\nEnd.\n"
    )
    assert aligned(text).splitlines() == [
        "About:", "",
        "| model     | by  | score |",
        "| :-------- | :-- | ----: |",
        "| long name | one |     1 |",
        "| b         | two |  10.5 |",
        "", "End.",
    ]  # fmt: skip
