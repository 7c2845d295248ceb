"""What a batcher is, and the forms that items and outputs have.

An item is one array, a tuple of arrays or a dict of arrays; its arrays are its *arguments*. Numbers and lists of
numbers count as (numpy) arrays. Nothing is nested deeper.

Outputs are taken apart by what they are, and nothing is guessed:

- one array: row i belongs to item i;
- a tuple is always several outputs: each item gets a tuple of its parts;
- a dict (any mapping, so the outputs of Hugging Face models, too): each item gets a dict of its parts;
- a list is always one finished output per item, of any type: item i gets entry i as it is. An exception instance
  in it is passed through: it is that item's failure.

Parts of tuples and dicts may be any of these again. What an item gets of an array is a view: no two items share a
cell (unless the model returns an array whose cells are shared), but each view keeps the whole batch's memory alive.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from .arrays import as_array, is_array, kind_of, outline
from .errors import OutputMismatch

Form = Literal["array", "tuple", "dict"]


@runtime_checkable
class Batcher(Protocol):
    """Turns items into a model's inputs, and its outputs into one per item.

    A batcher is immutable and keeps nothing between calls: what `unbatch` has to know of a batch is in the context,
    so batches may overlap, in any number of threads.

    Three more methods are optional; they are used where a batcher has them. An error that the first two raise is the
    item's own:

    - `length(item) -> int`: what to sort by and to count against `max_batch_tokens`;
    - `shape_class(item) -> Hashable`: items of different classes are never put into one batch;
    - `crop(item, length) -> item`: an item cut to `length`, so that one long example tells what shorter ones cost.
    """

    def batch(self, items: Sequence[Any]) -> tuple[Any, Any]:
        """Return (inputs, context) for one or more items.

        Raises:
            TypeError, ValueError: an item cannot be batched, or not with the others; the message says which and why.
        """
        ...

    def unbatch(self, outputs: Any, context: Any) -> list[Any]:
        """Return one output per item, in the order of the items.

        Raises:
            OutputMismatch: `outputs` does not have one part for each item.
        """
        ...


def label(name: Hashable) -> str:
    """Call an argument by its name in messages; None is the name of an item that is one array."""
    return "the item" if name is None else f"argument {name!r}"


def form_of(value: Any) -> Form:
    """Return the form of an item or of outputs; all that is no tuple or mapping passes for an array."""
    return "dict" if isinstance(value, Mapping) else "tuple" if isinstance(value, tuple) else "array"


def arguments(item: Any) -> tuple[Form, dict[Hashable, Any]]:
    """Return an item's form and its arguments: by key, by position, or under None if it is one array.

    Raises:
        TypeError, ValueError: as `as_array`; or the item is empty.
    """
    form = form_of(item)
    entries: Iterable[tuple[Hashable, Any]] = [(None, item)]
    if form != "array":
        entries = item.items() if form == "dict" else enumerate(item)
    arrays = {name: value if is_array(value) else as_array(value, label(name)) for name, value in entries}
    if not arrays:
        raise ValueError(f"the item is an empty {form}: it needs at least one array.")
    return form, arrays


def gather(items: Sequence[Any]) -> tuple[Form, dict[Hashable, list[Any]]]:
    """Return the form of the items, and for each argument the items' arrays, in order.

    Raises:
        TypeError, ValueError: no items; one that is not made of arrays; or one whose form, arguments, library, dtype
            or device differ from the first one's.
    """
    if len(items) == 0:
        raise ValueError("A batch needs at least one item.")
    taken = []
    for index, item in enumerate(items):
        try:
            taken.append(arguments(item))
        except (TypeError, ValueError) as error:
            raise type(error)(f"Item {index}: {error}") from error
    form, first = taken[0]
    for index, (other, arrays) in enumerate(taken):
        if other != form or arrays.keys() != first.keys():
            raise TypeError(f"Item {index} is a {other} of {[*arrays]}, item 0 a {form} of {[*first]}: {_APART}")
    columns = {name: [arrays[name] for _, arrays in taken] for name in first}
    for name, column in columns.items():
        kind = kind_of(column[0])
        for index, array in enumerate(column):
            if kind_of(array) != kind:
                raise TypeError(f"Item {index}: {label(name)} is {kind_of(array)}, item 0 {kind}: {_APART}")
    return form, columns


_APART = "convert them in preprocess, or keep them apart with shape_class()."


def check_shapes(name: Hashable, column: Sequence[Any], axis: int | None, advice: str) -> None:
    """Raise a ValueError with `advice` if shapes differ elsewhere than along `axis` (None: anywhere)."""
    first = outline(column[0], axis)
    for index, array in enumerate(column):
        if outline(array, axis) != first:
            shapes = f"shape {tuple(array.shape)}, item 0 {tuple(column[0].shape)}"
            raise ValueError(f"Item {index}: {label(name)} has {shapes}: {advice}")


def class_of(form: Form, arrays: Mapping[Hashable, Any], axes: Mapping[Hashable, int]) -> Hashable:
    """Return what items must have in common to share a batch; sizes may differ along `axes`, given by name."""
    return form, frozenset((name, kind_of(array), outline(array, axes.get(name))) for name, array in arrays.items())


def assemble(form: Form, arrays: dict[Hashable, Any]) -> Any:
    """Return a model's inputs in the form of the items; more than one array is a tuple or a dict."""
    values = tuple(arrays.values())
    return arrays if form == "dict" else values if form == "tuple" or len(values) > 1 else values[0]


def check_rows(array: Any, expected: int, name: Hashable, unit: str = "items") -> None:
    """Raise an OutputMismatch unless `array`, the output called `name`, has `expected` rows."""
    rows = array.shape[0] if array.ndim else "no"
    if rows != expected:
        what = "The output" if name is None else f"Output {name!r}"
        raise OutputMismatch(f"{what} has {rows} rows for {expected} {unit}, not one each.")


def split(outputs: Any, count: int, rows: Callable[[Any, Hashable], list[Any]], name: Hashable = None) -> list[Any]:
    """Take outputs apart into one per item, as the head of this file says.

    `rows(array, name)` returns the `count` items' parts of an array, or raises an OutputMismatch; `name` is the key
    or position among the outputs at the top, None if there is but one.
    """
    if is_array(outputs):
        return rows(outputs, name)
    if isinstance(outputs, list):
        if len(outputs) != count:
            raise OutputMismatch(f"The model returned {len(outputs)} outputs for {count} items, not one each.")
        return list(outputs)
    form = form_of(outputs)
    if form == "array" or not outputs:
        raise OutputMismatch(
            f"The model returned {'an empty' if form != 'array' else 'a'} {type(outputs).__name__} for {count} items: "
            "expected are an array with one row each, a tuple or dict of such, or a list of one output each."
        )
    entries = outputs.items() if form == "dict" else enumerate(outputs)
    parts = {key: split(part, count, rows, key if name is None else name) for key, part in entries}
    answers = zip(*parts.values(), strict=True)
    return [dict(zip(parts, answer, strict=True)) for answer in answers] if form == "dict" else list(answers)
