"""Buckets: which items share a batch, and to which length it is padded."""

from typing import Any

import numpy as np
import pytest
from batchery.batchers.bucket import BucketBatcher
from batchery.batchers.pad import PadBatcher


@pytest.mark.parametrize(
    ("lengths", "size"),
    [([1, 16], 16), ([0], 16), ([17, 30], 32), ([32], 32), ([33, 64], 64), ([65, 70], 70)],
)
def test_a_batch_is_padded_to_the_edge_of_its_bucket(lengths: list[int], size: int) -> None:
    batcher = BucketBatcher(buckets=[16, 32, 64], batcher=PadBatcher(padding=9))
    items = [np.zeros(length, np.int64) for length in lengths]
    inputs, _ = batcher.batch(items)
    assert inputs.shape == (len(lengths), size)
    assert (inputs == 9).sum() == len(lengths) * size - sum(lengths)
    assert len({batcher.shape_class(item) for item in items}) == 1


def test_items_of_different_buckets_are_of_different_classes() -> None:
    batcher = BucketBatcher()
    classes = [batcher.shape_class(np.zeros(length)) for length in (16, 17, 32, 33, 64, 65, 1000)]
    assert len(set(classes)) == 4
    assert classes[0] != BucketBatcher().shape_class(np.zeros(16, np.int8))


@pytest.mark.parametrize("lengths", [(16, 17), (64, 65), (1, 65)])
def test_items_of_several_buckets_are_refused_together(lengths: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"Item 1 is {lengths[1]} long, item 0 {lengths[0]}.*shape_class"):
        BucketBatcher().batch([np.zeros(length) for length in lengths])


def test_length_and_outputs_are_those_of_the_inner_batcher() -> None:
    batcher = BucketBatcher(batcher=PadBatcher(padding={"ids": 0}, unpad={"ids": 0}, mask="real"))
    items = [{"ids": np.ones(3)}, {"ids": np.ones(5)}]
    inputs, context = batcher.batch(items)
    assert batcher.length(items[1]) == 5
    assert inputs["real"].sum() == 8
    assert [answer["ids"].shape for answer in batcher.unbatch({"ids": inputs["ids"]}, context)] == [(3,), (5,)]


@pytest.mark.parametrize(
    "options", [{"buckets": []}, {"buckets": [32, 16]}, {"buckets": [0]}, {"batcher": PadBatcher(pad_to=8)}]
)
def test_a_bad_option_fails_when_the_batcher_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"buckets=|pad_to="):
        BucketBatcher(**options)
