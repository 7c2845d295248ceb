"""Stacking: the model's inputs, and the items that are refused."""

from typing import Any

import numpy as np
import pytest
import torch
from batchery.batchers.stack import StackBatcher


@pytest.mark.parametrize(
    ("items", "dtype"),
    [([1, 2], "int64"), ([1.5, 2.5], "float64"), ([True, False], "bool"), ([np.float32(1), np.float32(2)], "float32")],
)
def test_numbers_are_stacked_and_come_back(items: list[Any], dtype: str) -> None:
    batcher = StackBatcher()
    inputs, context = batcher.batch(items)
    assert (inputs.shape, inputs.dtype) == ((2,), dtype)
    assert batcher.unbatch(inputs, context) == items


def test_each_argument_is_stacked_separately() -> None:
    inputs, _ = StackBatcher().batch([{"x": torch.zeros(2, 3), "t": 0.5}, {"t": 0.25, "x": torch.ones(2, 3)}])
    assert inputs["x"].shape == (2, 2, 3)
    assert inputs["t"].tolist() == [0.5, 0.25]


def test_items_of_several_shapes_are_of_different_classes_and_refused_together() -> None:
    batcher = StackBatcher()
    assert batcher.shape_class(np.ones(2)) == batcher.shape_class(np.zeros(2))
    assert batcher.shape_class(np.ones(2)) != batcher.shape_class(np.ones(3))
    assert batcher.shape_class(1) != batcher.shape_class(1.0)
    with pytest.raises(ValueError, match=r"Item 1: argument 0 has shape \(3,\), item 0 \(2,\).*PadBatcher"):
        batcher.batch([(np.ones(2),), (np.ones(3),)])


def test_stack_batcher_counts_no_length() -> None:
    assert not hasattr(StackBatcher(), "length")
