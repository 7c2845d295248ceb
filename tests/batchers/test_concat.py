"""Concatenation: the model's inputs, and the items that are refused."""

from typing import Any

import numpy as np
import pytest
import torch
from batchery.batchers.concat import ConcatBatcher
from batchery.batchers.errors import OutputMismatch


def test_rows_are_joined_in_the_order_of_the_items() -> None:
    inputs, _ = ConcatBatcher().batch([[1, 2], [3], [4, 5, 6]])
    assert inputs.tolist() == [1, 2, 3, 4, 5, 6]


def test_each_item_gets_its_own_rows_of_each_output() -> None:
    batcher = ConcatBatcher()
    _, context = batcher.batch([np.ones((2, 3)), np.ones((1, 3))])
    first, second = batcher.unbatch({"a": np.arange(3), "b": (torch.arange(3), ["x", "y"])}, context)
    assert first["a"].tolist() == [0, 1]
    assert second["a"].tolist() == [2]
    assert first["b"][0].tolist() == [0, 1]
    assert (first["b"][1], second["b"][1]) == ("x", "y")


def test_outputs_with_one_row_per_item_instead_of_per_input_row_are_refused() -> None:
    batcher = ConcatBatcher()
    _, context = batcher.batch([np.ones((2, 3)), np.ones((1, 3))])
    with pytest.raises(OutputMismatch, match="2 rows for 3 input rows"):
        batcher.unbatch(np.ones(2), context)


def test_the_length_is_the_number_of_rows() -> None:
    assert ConcatBatcher().length({"a": np.ones((4, 2)), "b": [1, 2, 3, 4]}) == 4


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([np.ones((1, 2)), np.ones((1, 3))], r"Item 1: the item has shape \(1, 3\), item 0 \(1, 2\)"),
        ([np.ones(1), 2.0], "Item 1"),
        ([1.0, 2.0], "Item 0: the item is a single number.*StackBatcher"),
        ([(np.ones(1), np.ones(1)), (np.ones(2), np.ones(3))], r"Item 1: the arguments \[0, 1\] have \[2, 3\] rows"),
        ([np.ones(1), torch.ones(1)], "Item 1"),
        ([torch.ones(1), torch.ones(1, dtype=torch.float16)], "Item 1"),
        ([], "at least one item"),
    ],
)
def test_items_that_do_not_go_together_are_refused_by_number_and_argument(items: list[Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ConcatBatcher().batch(items)


def test_the_shape_class_ignores_only_the_number_of_rows() -> None:
    shape_class = ConcatBatcher().shape_class
    assert shape_class(np.ones((2, 3))) == shape_class(np.ones((0, 3)))
    assert shape_class(np.ones((2, 3))) != shape_class(np.ones((2, 2)))
