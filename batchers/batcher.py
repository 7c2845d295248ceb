"""The protocol of batchers, and the forms of items and outputs.

An item is one array, a tuple of arrays or a dict of arrays. Its arrays are called its *arguments*. Numbers and lists
of numbers count as numpy arrays. Nothing is nested deeper.

The type of the outputs alone decides how they are split:

- an array: row i belongs to item i;
- a tuple is always several outputs: each item gets a tuple of its parts;
- a dict or any other mapping, such as the outputs of Hugging Face models: each item gets a dict of its parts;
- a list is always one finished output per item, of any type: item i gets entry i unchanged. An exception instance
  among the entries is its item's failure.

The parts of tuples and dicts may have any of these types again. An item gets views of the arrays. No two items share a
cell (unless the model returns an array whose cells are shared), but each view keeps the memory of the whole batch.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from .arrays import as_array, is_array, kind_of, outline
from .errors import OutputMismatch

Form = Literal["array", "tuple", "dict"]
#: Splits one output, given with its name, into the outputs of the items.
Cut = Callable[[Any, Hashable], list[Any]]

_ADVICE = "convert them in preprocess, or keep them apart with shape_class()."


@runtime_checkable
class Batcher(Protocol):
    """Turns items into the model's inputs, and the model's outputs into one output per item.

    A batcher is immutable and keeps nothing between calls. All that `unbatch` needs to know about a batch is in the
    context, so batches may overlap, in any number of threads.

    A batcher may have three more methods. An error that one of the first two raises is the item's own:

    - `length(item) -> int`: the length for sorting, and for `max_batch_tokens`;
    - `shape_class(item) -> Hashable`: items of different classes never share a batch;
    - `crop(item, length) -> item`: the item cut to `length`, so that the costs of short items can be measured with one
      long example.
    """

    def batch(self, items: Sequence[Any]) -> tuple[Any, Any]:
        """Return (inputs, context) for one or more items.

        Raises:
            TypeError, ValueError: an item cannot be batched, alone or with the others; the message says which and why.
        """

    def unbatch(self, outputs: Any, context: Any) -> list[Any]:
        """Return one output per item, in the order of the items.

        Raises:
            OutputMismatch: `outputs` does not have one part for each item.
        """


def label(name: Hashable) -> str:
    """Return the name of an argument for messages; None names the only array of an item."""
    return "the item" if name is None else f"argument {name!r}"


def output_label(name: Hashable) -> str:
    """Return the name of an output for messages; None names the only output."""
    return "The output" if name is None else f"Output {name!r}"


def parts_of(value: Any) -> tuple[Form, dict[Hashable, Any]]:
    """Return the form of an item or of outputs, and the parts by key or position.

    Whatever is no tuple and no mapping counts as an array, which stands under None.
    """
    if isinstance(value, Mapping):
        return "dict", dict(value)
    return ("tuple", dict(enumerate(value))) if isinstance(value, tuple) else ("array", {None: value})


def arguments(item: Any) -> tuple[Form, dict[Hashable, Any]]:
    """Return an item's form and its arguments, as `parts_of` does.

    Raises a TypeError or ValueError if an argument is no array of numbers, or the item is empty.
    """
    if is_array(item):  # Most items are, and then take half the time.
        return "array", {None: item}
    form, parts = parts_of(item)
    arrays = {name: value if is_array(value) else as_array(value, label(name)) for name, value in parts.items()}
    if not arrays:
        raise ValueError(f"the item is an empty {form}: it needs at least one array.")
    return form, arrays


def gather(items: Sequence[Any]) -> tuple[Form, dict[Hashable, list[Any]]]:
    """Return the form of the items and, for each argument, the arrays of all items in order.

    Raises a TypeError or ValueError if there are no items, an item is not made of arrays, or its form, arguments,
    library, dtype or device differ from those of the first.
    """
    if len(items) == 0:
        raise ValueError("A batch needs at least one item.")
    rows = []
    for index, item in enumerate(items):
        try:
            rows.append(arguments(item))
        except (TypeError, ValueError) as error:
            raise type(error)(f"Item {index}: {error}") from error
    form, first = rows[0]
    for index, (other, arrays) in enumerate(rows):
        if other != form or arrays.keys() != first.keys():
            raise TypeError(f"Item {index} is a {other} of {[*arrays]}, item 0 a {form} of {[*first]}: {_ADVICE}")
    columns = {name: [arrays[name] for _, arrays in rows] for name in first}
    for name, column in columns.items():
        kinds = [*map(kind_of, column)]
        if odd := first_odd(kinds):
            raise TypeError(f"Item {odd}: {label(name)} is {kinds[odd]}, item 0 {kinds[0]}: {_ADVICE}")
    return form, columns


def first_odd(values: Sequence[Any]) -> int:
    """Return the index of the first value that differs from the one at 0; 0 if all are equal."""
    return next((index for index, value in enumerate(values) if value != values[0]), 0)


def check_shapes(name: Hashable, column: Sequence[Any], axis: int | None, advice: str) -> None:
    """Raise a ValueError with `advice` if the shapes differ, except along `axis` unless it is None."""
    if odd := first_odd([outline(array, axis) for array in column]):
        shapes = f"shape {tuple(column[odd].shape)}, item 0 {tuple(column[0].shape)}"
        raise ValueError(f"Item {odd}: {label(name)} has {shapes}: {advice}")


def class_of(form: Form, arrays: Mapping[Hashable, Any], axes: Mapping[Hashable, int]) -> Hashable:
    """Return what items must have in common to share a batch; sizes may differ along `axes`, given by argument."""
    return form, frozenset((name, kind_of(array), outline(array, axes.get(name))) for name, array in arrays.items())


def assemble(form: Form, arrays: dict[Hashable, Any]) -> Any:
    """Return the model's inputs in the form of the items; several arrays are a tuple or a dict."""
    values = tuple(arrays.values())
    return arrays if form == "dict" else values if form == "tuple" or len(values) > 1 else values[0]


def split(
    outputs: Any, count: int, cut: Cut | None = None, *, input_rows: int | None = None, name: Hashable = None
) -> list[Any]:
    """Split outputs into one per item, by the rules at the head of this file, or raise an OutputMismatch.

    An array must have `count` rows, or `input_rows` if they are given. `cut(array, name)` splits it, by default into
    its rows. `name` is the key or position among the outputs at the top; None if there is only one output.
    """
    if is_array(outputs):
        rows = outputs.shape[0] if outputs.ndim else "no"
        expected, unit = (count, "items") if input_rows is None else (input_rows, "input rows")
        if rows != expected:
            raise OutputMismatch(f"{output_label(name)} has {rows} rows for {expected} {unit}, not one each.")
        return cut(outputs, name) if cut else list(outputs)
    if isinstance(outputs, list):
        if len(outputs) != count:
            raise OutputMismatch(f"The model returned {len(outputs)} outputs for {count} items, not one each.")
        return list(outputs)
    form, parts = parts_of(outputs)
    if form == "array" or not parts:
        kind = f"{'an empty' if form != 'array' else 'a'} {type(outputs).__name__}"
        possible = "an array with one row each, a tuple or dict of such arrays, or a list of one output each."
        raise OutputMismatch(f"The model returned {kind} for {count} items: expected are {possible}")
    for key, part in parts.items():
        parts[key] = split(part, count, cut, input_rows=input_rows, name=key if name is None else name)
    answers = zip(*parts.values(), strict=True)
    return [dict(zip(parts, answer, strict=True)) for answer in answers] if form == "dict" else list(answers)
