"""Lists: items of any type reach the model unchanged."""

from typing import Any

import pytest
from batchery.batchers.errors import OutputMismatch
from batchery.batchers.list import ListBatcher
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(st.text(), st.integers(), st.none(), st.lists(st.integers()))))
def test_listed_items_come_back_as_they_are(items: list[Any]) -> None:
    batcher = ListBatcher()
    inputs, context = batcher.batch(items)
    assert inputs == items
    assert inputs is not items
    assert batcher.unbatch(inputs, context) == items


def test_a_tuple_is_one_output_per_item_and_a_dict_is_refused() -> None:
    batcher = ListBatcher()
    assert batcher.unbatch(("a", "b"), 2) == ["a", "b"]
    with pytest.raises(OutputMismatch, match="returned a dict: expected is a list of 2"):
        batcher.unbatch({"a": [1, 2]}, 2)
