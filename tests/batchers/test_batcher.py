"""All batchers: each caller gets its own result, whatever the items are."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from batchery.batchers.batcher import Batcher
from batchery.batchers.bucket import BucketBatcher
from batchery.batchers.concat import ConcatBatcher
from batchery.batchers.errors import OutputMismatch
from batchery.batchers.list import ListBatcher
from batchery.batchers.pad import PadBatcher
from batchery.batchers.stack import StackBatcher
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

NUMPY = ["bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64"]
TORCH = [torch.bool, torch.int8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIDES: st.SearchStrategy[Any] = st.sampled_from(["right", "left"])
property_test = settings(deadline=None, max_examples=150)


def make(kind: Any, shape: Sequence[int], seed: int) -> Any:
    """An array of a numpy or torch dtype, its cells filled so that items differ."""
    values = (np.arange(np.prod(shape, dtype=int)) * 7 + seed) % (2 if kind in ("bool", torch.bool) else 100)
    values = values.reshape(shape)
    return values.astype(kind) if isinstance(kind, str) else torch.from_numpy(values).to(kind)


def assert_same(actual: Any, expected: Any) -> None:
    """Same structure, library, dtype, shape and values; a numpy scalar is as good as an array without dims."""
    assert type(actual) is type(expected) or (isinstance(actual, np.generic) and not expected.shape)
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_same(actual[name], expected[name])
    elif isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    else:
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


def assert_round_trip(batcher: Batcher, items: Sequence[Any]) -> None:
    """The model that returns its inputs gives each caller its own item."""
    inputs, context = batcher.batch(items)
    answers = batcher.unbatch(inputs, context)
    assert len(answers) == len(items)
    for answer, item in zip(answers, items, strict=True):
        assert_same(answer, item)


@st.composite
def ragged_items(draw: DrawFn, axis: int, same_rows: bool = False) -> list[Any]:
    """Items of one form, each argument with its own dtype and fixed dims; sizes along `axis` differ."""
    form = draw(st.sampled_from(["array", "tuple", "dict"]))
    count = 1 if form == "array" else draw(st.integers(1, 3))
    kinds = draw(st.lists(st.sampled_from([*NUMPY, *TORCH]), min_size=count, max_size=count))
    fixed = [draw(st.lists(st.integers(1, 3), min_size=axis, max_size=axis + 2)) for _ in range(count)]
    items = []
    for seed in range(draw(st.integers(1, 6))):
        rows = draw(st.integers(0, 9))
        lengths = [rows if same_rows else draw(st.integers(0, 9)) for _ in range(count)]
        shapes = [(*dims[:axis], length, *dims[axis:]) for dims, length in zip(fixed, lengths, strict=True)]
        arrays = [make(kind, shape, seed * 31 + i) for i, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))]
        items.append(as_form(form, arrays))
    return items


def as_form(form: str, arrays: list[Any]) -> Any:
    if form == "dict":
        return {f"x{index}": array for index, array in enumerate(arrays)}
    return tuple(arrays) if form == "tuple" else arrays[0]


@st.composite
def pad_case(draw: DrawFn) -> tuple[PadBatcher, list[Any]]:
    axis = draw(st.integers(0, 2))
    items = draw(ragged_items(axis))
    first = items[0]
    arrays = [*first.values()] if isinstance(first, dict) else [*first] if isinstance(first, tuple) else [first]
    # A negative axis is counted from each argument's last, so it means the same one only where dims are as many.
    negative = draw(st.booleans()) and len({array.ndim for array in arrays}) == 1
    axis = axis - arrays[0].ndim if negative else axis
    pad_to = draw(st.sampled_from([None, 1, 4, [2, 5], [16]]))
    value = draw(st.sampled_from([0, 1, True, 0.0]))
    return PadBatcher(padding=value, side=draw(SIDES), axis=axis, pad_to=pad_to, unpad=axis), items


@property_test
@given(pad_case())
def test_padded_items_come_back_each_to_its_own_caller_and_unpadded(case: tuple[PadBatcher, list[Any]]) -> None:
    assert_round_trip(*case)


@property_test
@given(ragged_items(axis=0, same_rows=True))
def test_concatenated_items_come_back_each_to_its_own_caller(items: list[Any]) -> None:
    assert_round_trip(ConcatBatcher(), items)


@property_test
@given(st.sampled_from([*NUMPY, *TORCH]), st.lists(st.integers(0, 3), max_size=3), st.integers(1, 6), st.data())
def test_stacked_items_come_back_each_to_its_own_caller(kind: Any, shape: list[int], count: int, data: Any) -> None:
    form = data.draw(st.sampled_from(["array", "tuple", "dict"]))
    both = [[make(kind, shape, seed), make("int16", (2,), seed)] for seed in range(count)]
    assert_round_trip(StackBatcher(), [as_form(form, arrays) for arrays in both])


@property_test
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), SIDES)
def test_bucketed_items_come_back_each_to_its_own_caller(lengths: list[int], side: Any) -> None:
    batcher = BucketBatcher(buckets=[8, 16], batcher=PadBatcher(padding=7, side=side, unpad=0))
    items = [make("int32", (length, 2), seed) for seed, length in enumerate(lengths)]
    for together in {batcher.shape_class(item): None for item in items}:
        assert_round_trip(batcher, [item for item in items if batcher.shape_class(item) == together])


@property_test
@given(pad_case())
def test_the_order_of_an_items_arguments_does_not_matter(case: tuple[PadBatcher, list[Any]]) -> None:
    batcher, items = case
    assert len({batcher.shape_class(item) for item in items}) == 1
    reversed_keys = [dict(reversed(item.items())) if isinstance(item, dict) else item for item in items]
    assert {*map(batcher.shape_class, reversed_keys)} == {*map(batcher.shape_class, items)}
    batcher.batch([*items, *reversed_keys])


# Another library sorted ragged items, so that callers got each other's results.
@pytest.mark.parametrize("batcher", [ConcatBatcher(), PadBatcher(unpad=0), PadBatcher(unpad=0, side="left")])
def test_ragged_items_are_never_permuted(batcher: Batcher) -> None:
    for lengths in ([2, 5, 3, 4], [5, 4, 3, 2], [2, 3, 4, 5], [0, 5, 0, 4]):
        items = [np.full(length, index) for index, length in enumerate(lengths)]
        inputs, context = batcher.batch(items)
        assert [answer.tolist() for answer in batcher.unbatch(inputs, context)] == [item.tolist() for item in items]


# Another library stacked features as int64, so that [0.5, 1.7] reached the model as [0, 1].
@pytest.mark.parametrize("batcher", [ConcatBatcher(), StackBatcher(), PadBatcher(), PadBatcher(pad_to=4)])
def test_floats_are_never_truncated(batcher: Batcher) -> None:
    inputs, _ = batcher.batch([[0.5, 1.7], [2.9, 3.1]])
    assert inputs.dtype == np.float64
    assert inputs.sum() == pytest.approx(8.2)


BATCHERS: list[Batcher] = [ListBatcher(), ConcatBatcher(), StackBatcher(), PadBatcher(), PadBatcher(unpad=0)]
BATCHERS += [BucketBatcher(), BucketBatcher(batcher=PadBatcher(mask=True))]


def output_forms(rows: int) -> list[tuple[str, Any]]:
    array = np.zeros((rows, 16))
    return [
        ("numpy", array),
        ("torch", torch.zeros(rows, 16)),
        ("list", [0] * rows),
        ("tuple", (array, array)),
        ("dict", {"a": array, "b": torch.zeros(rows, 16)}),
        ("list in a dict", {"a": [0] * rows}),
        ("nested", {"states": (array, array)}),
    ]


@pytest.mark.parametrize("batcher", BATCHERS, ids=repr)
@pytest.mark.parametrize("rows", [0, 1, 2, 4, 5, 6, 7, 32])
def test_a_wrong_number_of_outputs_is_an_output_mismatch(batcher: Batcher, rows: int) -> None:
    _, context = batcher.batch([np.zeros(1), np.ones(1), np.ones(1)])
    for form, outputs in output_forms(rows):
        with pytest.raises(OutputMismatch, match=r"\d"):
            assert batcher.unbatch(outputs, context) is None, form


@pytest.mark.parametrize("batcher", BATCHERS, ids=repr)
@pytest.mark.parametrize("outputs", [None, "abc", b"abc", 3, {}, {1, 2, 3}, (), np.float32(1), iter([1, 2, 3])])
def test_outputs_of_an_unknown_type_are_an_output_mismatch(batcher: Batcher, outputs: Any) -> None:
    _, context = batcher.batch([np.zeros(1)] * 3)
    with pytest.raises(OutputMismatch, match=r"expected|not one each"):
        batcher.unbatch(outputs, context)


@pytest.mark.parametrize("batcher", BATCHERS, ids=repr)
@pytest.mark.parametrize("outputs", [np.zeros(()), torch.zeros(())])
def test_an_output_without_rows_is_an_output_mismatch(batcher: Batcher, outputs: Any) -> None:
    _, context = batcher.batch([np.zeros(1)])
    with pytest.raises(OutputMismatch, match="no rows for 1"):
        batcher.unbatch(outputs, context)


@pytest.mark.parametrize("batcher", BATCHERS, ids=repr)
def test_exceptions_in_a_list_of_outputs_pass_through_untouched(batcher: Batcher) -> None:
    bad = ValueError("this item only")
    _, context = batcher.batch([np.zeros(1)] * 3)
    assert batcher.unbatch([1, bad, "three"], context) == [1, bad, "three"]


@pytest.mark.parametrize("batcher", BATCHERS[1:4], ids=repr)
def test_the_model_may_change_its_inputs_without_changing_the_items(batcher: Batcher) -> None:
    for array in (np.ones((1, 2)), torch.ones(1, 2)):
        for items in ([array], [array, array + 1]):
            inputs, _ = batcher.batch(items)
            inputs[:] = 9
            assert array.tolist() == [[1, 1]]


def overlapping(batcher: Batcher) -> tuple[list[Any], list[Any]]:
    return [make("int64", (n, 2), n) for n in (3, 1, 2)], [make("int64", (n, 2), n) for n in (1, 5, 2, 4)]


RAGGED: list[Batcher] = [
    ListBatcher(),
    ConcatBatcher(),
    PadBatcher(unpad=0),
    PadBatcher(unpad=0, side="left"),
    BucketBatcher(batcher=PadBatcher(unpad=0)),
]


@pytest.mark.parametrize("batcher", RAGGED, ids=repr)
def test_overlapping_batches_of_one_batcher_keep_their_items_apart(batcher: Batcher) -> None:
    one, two = overlapping(batcher)
    inputs_one, context_one = batcher.batch(one)
    inputs_two, context_two = batcher.batch(two)
    for answers, items in (
        (batcher.unbatch(inputs_one, context_one), one),
        (batcher.unbatch(inputs_two, context_two), two),
    ):
        for answer, item in zip(answers, items, strict=True):
            assert_same(answer, item)


@pytest.mark.parametrize("batcher", RAGGED, ids=repr)
def test_batches_of_several_threads_keep_their_items_apart(batcher: Batcher) -> None:
    threads = 4
    barrier = Barrier(threads)

    def work(thread: int) -> None:
        items = [make("int64", (length, 2), thread * 10 + length) for length in range(1, 2 + thread)]
        for _ in range(50):
            inputs, context = batcher.batch(items)
            barrier.wait(timeout=10)
            for answer, item in zip(batcher.unbatch(inputs, context), items, strict=True):
                assert_same(answer, item)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


@pytest.mark.parametrize("make_one", [ListBatcher, ConcatBatcher, StackBatcher, PadBatcher, BucketBatcher])
def test_batchers_implement_the_protocol_and_are_immutable(make_one: Callable[[], Batcher]) -> None:
    batcher = make_one()
    assert isinstance(batcher, Batcher)
    assert hash(batcher) == hash(make_one())
    assert batcher == make_one()
    with pytest.raises((AttributeError, TypeError)):
        batcher.padding = 3  # type: ignore[attr-defined]  # the point of the test
