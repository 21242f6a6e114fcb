"""The behaviour recorded in golden.json by make.py."""

import json

import pytest
from golden.make import GOLDEN, differences, record


@pytest.mark.slow
def test_behaviour_is_what_it_was(tmp_path):
    assert differences(json.loads(GOLDEN.read_text(encoding="utf-8")), record(tmp_path)) == []
