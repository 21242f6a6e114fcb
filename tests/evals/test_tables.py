"""Numbers in tables."""

import pytest

from asarm.evals.tables import FEWEST, with_interval


@pytest.mark.parametrize(("n", "shown"), [(FEWEST, "25.0 [10.0, 40.0]"), (FEWEST - 1, "25.0")])
def test_intervals_are_shown_from_twenty_items(n, shown):
    assert with_interval({"mean": 0.25, "interval_95": [0.1, 0.4], "n": n}, 1, 100) == shown
