"""Padding: the model's inputs, and the items and options that are refused."""

from collections import UserDict
from typing import Any, cast

import numpy as np
import pytest
import torch
from batchery.batchers.errors import OutputMismatch
from batchery.batchers.pad import PadBatcher
from hypothesis import given, settings
from hypothesis import strategies as st

property_test = settings(deadline=None, max_examples=150)
LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@property_test
@given(
    LENGTHS,
    st.sampled_from(["right", "left"]),
    st.sampled_from([0, 1, -1]),
    st.sampled_from([None, 1, 4, (3, 6)]),
    st.booleans(),
)
def test_padding_cells_hold_the_value_and_the_mask_marks_the_real_ones(
    lengths: list[int], side: Any, axis: int, pad_to: Any, torched: bool
) -> None:
    shapes = [(length, 2) if axis == 0 else (2, length) for length in lengths]
    items: list[Any] = [np.full(shape, 5, np.int16) for shape in shapes]
    if torched:
        items = [torch.from_numpy(item) for item in items]
    batcher = PadBatcher(padding=-1, side=side, axis=axis, pad_to=pad_to, mask=True)
    (padded, mask), _ = batcher.batch(items)
    assert type(padded) is type(mask) is type(items[0])
    assert str(mask.dtype).endswith("bool")
    padded, mask = np.moveaxis(np.asarray(padded), axis if axis < 0 else axis + 1, 1), np.asarray(mask)
    assert padded.shape == (len(items), mask.shape[1], 2)
    assert mask.sum(axis=1).tolist() == lengths
    for row, cells, length in zip(padded, mask, lengths, strict=True):
        own = slice(0, length) if side == "right" else slice(len(cells) - length, None)
        assert cells[own].all()
        assert (row[cells] == 5).all()
        assert (row[~cells] == -1).all()


@property_test
@given(LENGTHS, st.integers(1, 9))
def test_an_integer_pad_to_is_the_least_multiple_that_holds_the_longest(lengths: list[int], multiple: int) -> None:
    inputs, _ = PadBatcher(pad_to=multiple).batch([np.ones(length) for length in lengths])
    assert inputs.shape[1] % multiple == 0
    assert max(lengths) <= inputs.shape[1] < max(lengths) + multiple


@pytest.mark.parametrize(("longest", "size"), [(0, 16), (1, 16), (16, 16), (17, 32), (64, 64), (65, 65), (100, 100)])
def test_a_list_pad_to_is_the_first_length_that_holds_the_longest(longest: int, size: int) -> None:
    inputs, _ = PadBatcher(pad_to=[16, 32, 64]).batch([np.ones(0), np.ones(longest)])
    assert inputs.shape == (2, size)


def test_each_argument_has_its_own_value_and_its_own_longest() -> None:
    items = [
        {"ids": np.array([1, 2, 3]), "patches": np.ones((1, 2), np.float32), "label": 4},
        {"ids": np.array([5]), "patches": np.ones((4, 2), np.float32), "label": 6},
    ]
    inputs, _ = PadBatcher(padding={"ids": 9, "patches": -0.5}, mask="mask").batch(items)
    assert inputs["ids"].tolist() == [[1, 2, 3], [5, 9, 9]]
    assert inputs["patches"].shape == (2, 4, 2)
    assert (inputs["patches"][0, 1:] == -0.5).all()
    assert inputs["label"].tolist() == [4, 6]
    assert inputs["mask"].tolist() == [[True, True, True], [True, False, False]]


def test_padding_by_position_skips_arguments_that_are_none_or_not_named() -> None:
    items = [(np.zeros(2), [1.0], np.arange(3), [7]), (np.zeros(2), [1.0, 2.0], np.arange(1), [8])]
    inputs, _ = PadBatcher(padding=[None, 0.5, -1]).batch(items)
    assert isinstance(inputs, tuple)
    assert [array.shape for array in inputs] == [(2, 2), (2, 2), (2, 3), (2, 1)]
    assert inputs[1].tolist() == [[1.0, 0.5], [1.0, 2.0]]
    assert inputs[2].tolist() == [[0, 1, 2], [0, -1, -1]]


def test_the_length_is_that_of_the_first_argument_that_padding_names() -> None:
    item = {"a": np.ones(3), "b": np.ones(7), "c": 1.0}
    assert PadBatcher().length(item) == 3
    assert PadBatcher(padding={"b": 0, "a": 0}).length(item) == 7
    assert PadBatcher(padding=(None, 0)).length((np.ones(3), np.ones(7))) == 7
    assert PadBatcher(axis=-1).length(np.ones((3, 9))) == 9
    assert PadBatcher().length([1, 2]) == 2


def test_the_mask_and_the_cuts_follow_the_first_argument_that_padding_names() -> None:
    batcher = PadBatcher(padding={"b": 0, "a": 0}, mask="mask", unpad=0)
    inputs, context = batcher.batch([{"a": [1], "b": [1, 1]}, {"a": [1], "b": [1, 1, 1]}])
    assert inputs["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert [answer.tolist() for answer in batcher.unbatch(inputs["b"], context)] == [[1, 1], [1, 1, 1]]


def test_the_output_of_a_tokenizer_can_be_batched() -> None:
    items = [UserDict(input_ids=[1, 2, 3], attention_mask=[1, 1, 1]), UserDict(input_ids=[4], attention_mask=[1])]
    inputs, _ = PadBatcher(padding={"input_ids": 0, "attention_mask": 0}).batch(items)
    assert type(inputs) is dict
    assert inputs["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_outputs_of_a_hugging_face_model_are_split() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs").BaseModelOutputWithPooling(
        last_hidden_state=torch.arange(12.0).reshape(2, 3, 2),
        pooler_output=torch.ones(2, 5),
        hidden_states=(torch.zeros(2, 3, 2), torch.ones(2, 3, 2)),
    )
    batcher = PadBatcher(unpad={"last_hidden_state": 0, "hidden_states": 0})
    _, context = batcher.batch([torch.ones(1), torch.ones(3)])
    first, second = batcher.unbatch(outputs, context)
    assert first["last_hidden_state"].tolist() == [[0, 1]]
    assert second["last_hidden_state"].tolist() == [[6, 7], [8, 9], [10, 11]]
    assert first["pooler_output"].shape == (5,)
    assert [state.shape for state in first["hidden_states"]] == [(1, 2), (1, 2)]


def test_outputs_are_cut_to_the_argument_of_their_name_else_to_the_first() -> None:
    items = [{"a": np.ones(1), "b": np.ones(4)}, {"a": np.ones(3), "b": np.ones(2)}]
    batcher = PadBatcher(unpad={"a": 0, "b": -1, "c": 0})
    inputs, context = batcher.batch(items)
    first, second = batcher.unbatch({**inputs, "c": np.ones((2, 3, 8)), "d": np.ones((2, 3))}, context)
    assert {name: part.shape for name, part in first.items()} == {"a": (1,), "b": (4,), "c": (1, 8), "d": (3,)}
    assert {name: part.shape for name, part in second.items()} == {"a": (3,), "b": (2,), "c": (3, 8), "d": (3,)}


def test_an_output_to_be_cut_that_is_not_as_long_as_the_inputs_is_an_output_mismatch() -> None:
    _, context = PadBatcher().batch([np.ones(1), np.ones(3)])
    for unpad, shape in ((0, (2, 4)), (0, (2,)), (1, (2, 3)), (-2, (2, 3)), (1, (2, 3, 4))):
        with pytest.raises(OutputMismatch, match="padded to 3"):
            PadBatcher(unpad=unpad).unbatch(np.ones(shape), context)
    with pytest.raises(OutputMismatch, match="name them in unpad"):
        PadBatcher(unpad=0).unbatch((np.ones((2, 3)), np.ones((2, 768))), context)


@pytest.mark.parametrize("unpad", [{"logits": 0}, {"other": 0}, (0,), (0, 0, 0)])
def test_unpad_that_names_an_output_the_model_does_not_return_is_refused(unpad: Any) -> None:
    batcher = PadBatcher(unpad=unpad)
    _, context = batcher.batch([np.ones(2)])
    outputs: Any = {"states": np.ones((1, 2))} if isinstance(unpad, dict) else np.ones((1, 2))
    for wrong in (outputs, np.ones((1, 2))):
        with pytest.raises(ValueError, match="unpad="):
            batcher.unbatch(wrong, context)


@pytest.mark.parametrize("unpad", [0, {"a": 0}, (0,)])
def test_a_list_of_outputs_is_never_cut(unpad: Any) -> None:
    batcher = PadBatcher(unpad=unpad)
    _, context = batcher.batch([np.ones(1), np.ones(3)])
    rows = [np.ones(3), {"label": "x"}]
    assert batcher.unbatch(rows, context) == rows


def test_without_unpad_rows_come_back_as_they_are() -> None:
    batcher = PadBatcher()
    inputs, context = batcher.batch([np.ones(1), np.ones(3)])
    assert [row.shape for row in batcher.unbatch(inputs, context)] == [(3,), (3,)]
    assert [row.shape for row in batcher.unbatch((inputs, inputs), context)[0]] == [(3,), (3,)]


BOTH: Any = pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])


@BOTH
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.5, "int64"),
        (-1, "uint8"),
        (300, "int8"),
        (float("nan"), "int64"),
        (float("-inf"), "int32"),
        (2, "bool"),
        (1e6, "float16"),
        (-1e9, "float16"),
    ],
)
@pytest.mark.parametrize("lengths", [(2, 3), (3, 3), (0, 0)])
def test_a_padding_value_that_the_dtype_cannot_hold_is_refused(
    library: Any, value: float, dtype: str, lengths: tuple[int, int]
) -> None:
    items = [library.zeros(length, dtype=getattr(library, dtype)) for length in lengths]
    with pytest.raises(ValueError, match="cannot hold the padding value"):
        PadBatcher(padding=value).batch(items)


@BOTH
@pytest.mark.parametrize(
    ("value", "dtype"),
    [(0.1, "float16"), (float("nan"), "float32"), (float("-inf"), "float16"), (1.0, "int8"), (True, "bool")],
)
def test_a_padding_value_that_the_dtype_holds_or_rounds_is_taken(library: Any, value: float, dtype: str) -> None:
    items = [library.zeros(length, dtype=getattr(library, dtype)) for length in (1, 2)]
    inputs, _ = PadBatcher(padding=value).batch(items)
    assert inputs.dtype == items[0].dtype
    np.testing.assert_allclose(float(inputs[0, 1]), value, rtol=1e-3)


def test_an_argument_without_a_padding_value_must_have_one_shape() -> None:
    items = [{"ids": np.ones(2), "image": np.ones((3, 4))}, {"ids": np.ones(2), "image": np.ones((3, 5))}]
    with pytest.raises(ValueError, match=r"Item 1: argument 'image' has shape \(3, 5\).*give this argument a padding"):
        PadBatcher(padding={"ids": 0}).batch(items)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([np.ones((2, 3)), np.ones((2, 4))], r"Item 1: the item has shape \(2, 4\), item 0 \(2, 3\).*axis 0 only"),
        ([np.ones(2), np.ones((2, 1))], "Item 1"),
        ([np.ones(2), np.float64(1)], "Item 1"),
        ([np.ones(2), np.ones(2, np.float32)], "Item 1: the item is .*float32.*float64"),
        ([np.ones(2), torch.ones(2)], "Item 1: the item is .*torch.*numpy"),
        ([{"a": np.ones(2)}, {"b": np.ones(2)}], r"Item 1 is a dict of \['b'\], item 0 a dict of \['a'\]"),
        ([np.ones(2), (np.ones(2),)], "Item 1 is a tuple"),
        ([np.ones(2), [[1, 2], [3]]], "Item 1: the item is a ragged list"),
        ([{"a": [1.0], "b": {"c": 1}}], "Item 0: argument 'b' is a dict"),
        ([np.ones(2), "text"], "Item 1: the item is a str"),
        ([np.ones(2), []], "Item 1: the item is an empty list, which has no dtype"),
        ([1.0, 2.0], "nothing to pad"),
        ([(1, 2, 3)], "nothing to pad"),
        ([], "at least one item"),
        ([()], "Item 0: the item is an empty tuple"),
    ],
)
def test_items_that_do_not_go_together_are_refused_by_number_and_argument(items: list[Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PadBatcher().batch(items)


@pytest.mark.parametrize("padding", [{"ids": 0, "typo": 0}, (0, 0), (0,), {}])
def test_padding_that_does_not_fit_the_item_is_refused(padding: Any) -> None:
    with pytest.raises(ValueError, match=r"padding=|nothing to pad"):
        PadBatcher(padding=padding).batch([{"ids": np.ones(2)}])


def test_a_named_argument_without_the_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="argument 'b' has 1 dims, and no axis 1 to pad"):
        PadBatcher(padding={"a": 0, "b": 0}, axis=1).batch([{"a": np.ones((2, 2)), "b": np.ones(2)}])
    with pytest.raises(ValueError, match="nothing to pad along axis -2"):
        PadBatcher(axis=-2).length(np.ones(2))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": None},
        {"padding": "0"},
        {"padding": {"ids": "0"}},
        {"unpad": {"ids": "0"}},
        {"side": "both"},
        {"pad_to": 0},
        {"pad_to": []},
        {"pad_to": [0, 4]},
        {"pad_to": [8, 4]},
        {"pad_to": [4, 4]},
    ],
)
def test_a_bad_option_fails_when_the_batcher_is_made(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(options))}=.*: give"):
        PadBatcher(**options)


def test_a_mask_needs_a_name_of_its_own_among_named_arguments() -> None:
    items = [{"ids": np.ones(2)}]
    for mask in (True, "ids"):
        with pytest.raises(ValueError, match="give a name that is not among"):
            PadBatcher(mask=mask).batch(items)


@pytest.mark.parametrize("mask", [True, "mask"])
def test_a_mask_is_appended_to_single_arrays_and_tuples(mask: Any) -> None:
    single, _ = PadBatcher(mask=mask).batch([np.ones(2)])
    assert [array.shape for array in single] == [(1, 2), (1, 2)]
    several, _ = PadBatcher(mask=mask).batch([(np.ones(2), np.ones(3))])
    assert [array.shape for array in several] == [(1, 2), (1, 3), (1, 2)]


def test_tensors_stay_on_their_device() -> None:
    items = [{"ids": torch.ones(length, dtype=torch.int64, device="meta")} for length in (1, 3)]
    inputs, _ = PadBatcher(mask="mask").batch(items)
    assert {name: (str(array.device), array.shape) for name, array in inputs.items()} == {
        "ids": ("meta", (2, 3)),
        "mask": ("meta", (2, 3)),
    }
    with pytest.raises(TypeError, match="Item 1: argument 'ids'.*cpu.*meta"):
        PadBatcher().batch([items[0], {"ids": torch.ones(1, dtype=torch.int64)}])


def test_options_are_copied() -> None:
    padding = {"ids": 0}
    batcher = PadBatcher(padding=padding)
    padding["ids"] = 9
    assert cast(dict[str, int], batcher.padding)["ids"] == 0


def test_jobs_whose_fixed_dims_or_dtypes_differ_are_of_different_classes() -> None:
    shape_class = PadBatcher().shape_class
    assert shape_class(np.ones((2, 3))) == shape_class(np.ones((5, 3)))
    others: list[Any] = [np.ones((2, 4)), np.ones(2), np.ones((2, 3), np.float32), torch.ones(2, 3)]
    others += [(np.ones((2, 3)),), {"a": np.ones((2, 3))}]
    assert len({shape_class(item) for item in [np.ones((2, 3)), *others]}) == 7
