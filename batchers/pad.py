"""Batches of items of different lengths, padded to the longest."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from typing import Any, Literal, NamedTuple

from .arrays import check_holds, full, library, real_cells
from .batcher import Form, arguments, assemble, check_shapes, class_of, gather, label, output_label, parts_of, split
from .errors import OutputMismatch

#: One number for all arguments (or outputs), or one for each by key or position; None leaves this one out.
PerArgument = float | Mapping[str, float | None] | Sequence[float | None]
PerOutput = int | Mapping[str, int | None] | Sequence[int | None]


class Span(NamedTuple):
    """The padding of one argument: each item's own length, and the common length."""

    lengths: tuple[int, ...]
    size: int


#: The context of a batch: the span of each padded argument, in the order of `padding`. The first one has the lengths
#: of the items.
Spans = Mapping[Hashable, Span]


@dataclass(frozen=True, slots=True, kw_only=True)
class PadBatcher:
    """Pads items that differ in size along `axis` to the longest in the batch, and stacks them along a new dim 0.

    Items of shape (length, ...) become (items, longest, ...) with the same dtype, library and device. Each argument is
    padded to its own longest. Arguments that are not padded must have one shape. Row i of the outputs belongs to item
    i. `batcher.py` describes the forms of items and outputs. Arrays are faster than lists, which are converted at each
    use.

    `unbatch` also raises `OutputMismatch` if an output to be cut is not as long as the padded inputs, and `ValueError`
    if `unpad` names an output that the model does not return.
    """

    #: The padding value. One value pads every argument that has `axis`; a dict or a tuple pads the arguments that it
    #: names by key or position (None: not this one). An item's length is that of the first padded argument.
    padding: PerArgument = field(default=0, hash=False)
    #: Whether the padding follows the item ("right") or precedes it ("left").
    side: Literal["right", "left"] = "right"
    #: The axis of an item along which sizes differ; negative counts from the last. (A tokenizer with `return_tensors`
    #: returns shape (1, length). Remove the first dim in preprocess, else items of different lengths share no batch.)
    axis: int = 0
    #: Pad to a multiple of this number, or to the first of these ascending lengths that is long enough. Items longer
    #: than all of them, and all items if this is None, are padded to the longest.
    pad_to: int | Sequence[int] | None = None
    #: Add a mask of the first padded argument to the inputs: bools of shape (items, longest), True for cells that are
    #: not padding. For dict items give its name; for others True, which appends it as the last input.
    mask: str | bool | None = None
    #: Cut outputs back to the item's own length along this axis, counted without dim 0 (an output shaped like the input
    #: has the same axis); negative counts from the last. A dict or a tuple names the outputs to cut. The length is that
    #: of the padded argument with the output's name or position, else of the first padded one. Entries of a list of
    #: outputs are never cut.
    unpad: PerOutput | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", _numbers("padding", self.padding))
        if self.unpad is not None:
            object.__setattr__(self, "unpad", _numbers("unpad", self.unpad))
        if self.side not in ("right", "left"):
            raise ValueError(f"side={self.side!r}: give 'right' or 'left'.")
        if self.pad_to is not None and not isinstance(self.pad_to, int):
            object.__setattr__(self, "pad_to", ascending("pad_to", self.pad_to))
        elif self.pad_to is not None and self.pad_to < 1:
            raise ValueError(f"pad_to={self.pad_to}: give a multiple of 1 or more.")

    def batch(self, items: Sequence[Any]) -> tuple[Any, Spans]:
        form, columns = gather(items)
        padded = self._padded(form, {name: column[0] for name, column in columns.items()})
        inputs, spans = {}, {}
        for name, column in columns.items():
            if name in padded:
                inputs[name], spans[name] = self._pad(name, column, *padded[name])
            else:
                check_shapes(name, column, None, "give this argument a padding value, or all items the same shape.")
                inputs[name] = library(column[0]).stack(column)
        context = {name: spans[name] for name in padded}
        if self.mask:
            mask_name = self.mask if form == "dict" else "mask"
            if mask_name is True or mask_name in inputs:
                raise ValueError(f"mask={self.mask!r}: give a name that is not among the arguments {[*inputs]}.")
            first = next(iter(context))
            inputs[mask_name] = real_cells(*context[first], self.side, columns[first][0])
        return assemble(form, inputs), context

    def unbatch(self, outputs: Any, context: Spans) -> list[Any]:
        first = next(iter(context.values()))
        axes: dict[Hashable, int] = {}
        if self.unpad is not None and not isinstance(outputs, list):
            axes = _by_name("unpad", self.unpad, *parts_of(outputs))

        def cut(array: Any, name: Hashable) -> list[Any]:
            return self._cut(array, name, axes[name], context.get(name, first)) if name in axes else list(array)

        return split(outputs, len(first.lengths), cut)

    def length(self, item: Any) -> int:
        """Return the size along `axis` of the first padded argument."""
        form, arrays = arguments(item)
        name, (axis, _) = next(iter(self._padded(form, arrays).items()))
        return int(arrays[name].shape[axis])

    def crop(self, item: Any, length: int) -> Any:
        """Return the item with each padded argument cut to its first `length` cells along `axis`."""
        form, arrays = arguments(item)
        for name, (axis, _) in self._padded(form, arrays).items():
            arrays[name] = arrays[name][(*(slice(None),) * axis, slice(0, length))]
        return assemble(form, arrays)

    def shape_class(self, item: Any) -> Hashable:
        """Return form, dtypes, devices, and all dims that are not padded."""
        form, arrays = arguments(item)
        return class_of(form, arrays, {name: axis for name, (axis, _) in self._padded(form, arrays).items()})

    def _padded(self, form: Form, arrays: Mapping[Hashable, Any]) -> dict[Hashable, tuple[int, float]]:
        """Return {name: (axis, padding value)} of the arguments to pad, in the order of `padding`."""
        padded = {}
        for name, value in _by_name("padding", self.padding, form, arrays).items():
            dims = arrays[name].ndim
            if -dims <= self.axis < dims:
                padded[name] = (self.axis % dims, value)
            elif isinstance(self.padding, (Mapping, tuple)):
                raise ValueError(f"{label(name)} has {dims} dims, and no axis {self.axis} to pad.")
        if not padded:
            shapes = {name: tuple(array.shape) for name, array in arrays.items()}
            raise ValueError(f"a {form} of shapes {shapes} has nothing to pad along axis {self.axis}.")
        return padded

    def _pad(self, name: Hashable, column: list[Any], axis: int, value: float) -> tuple[Any, Span]:
        check_shapes(name, column, axis, f"sizes may differ along axis {axis} only (option `axis`).")
        shape = column[0].shape
        check_holds(column[0], value, label(name))
        lengths = tuple(array.shape[axis] for array in column)
        longest = max(lengths)
        if isinstance(self.pad_to, int):
            size = -(-longest // self.pad_to) * self.pad_to
        else:
            size = edge(self.pad_to or (), longest) or longest
        if min(lengths) == size:
            return library(column[0]).stack(column), Span(lengths, size)
        buffer = full((len(column), *shape[:axis], size, *shape[axis + 1 :]), value, column[0])
        for index, array in enumerate(column):
            buffer[(index, *self._cells(lengths[index], size, axis))] = array
        return buffer, Span(lengths, size)

    def _cells(self, length: int, size: int, axis: int) -> tuple[slice, ...]:
        """Return the index of an item's own cells in its padded row."""
        start = 0 if self.side == "right" else size - length
        return (*(slice(None),) * axis, slice(start, start + length))

    def _cut(self, array: Any, name: Hashable, axis: int, span: Span) -> list[Any]:
        dims = array.ndim - 1
        size = array.shape[1:][axis] if -dims <= axis < dims else "no size"
        if size != span.size:
            found = f"{output_label(name)} has {size} along axis {axis} of its rows"
            advice = f"if only some outputs are to be cut, name them in unpad (it is {self.unpad!r})."
            raise OutputMismatch(f"{found}, but the inputs were padded to {span.size}: {advice}")
        return [row[self._cells(length, size, axis % dims)] for row, length in zip(array, span.lengths, strict=True)]


def ascending(option: str, lengths: Sequence[int]) -> tuple[int, ...]:
    """Return `lengths` as a tuple, or raise a ValueError that names `option` unless they are positive and ascending."""
    edges = tuple(lengths)
    if not edges or edges[0] < 1 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"{option}={lengths!r}: give one or more positive lengths, ascending.")
    return edges


def edge(edges: Iterable[int], length: int) -> int | None:
    """Return the first of the ascending edges that is not below `length`; None if all are."""
    return next((edge for edge in edges if length <= edge), None)


def _numbers(what: str, option: Any) -> Any:
    """Return a copy of the option `what`, or raise a TypeError unless it is made of numbers."""
    own = dict(option) if isinstance(option, Mapping) else tuple(option) if isinstance(option, list) else option
    if own is None or any(not isinstance(value, (Real, type(None))) for value in parts_of(own)[1].values()):
        raise TypeError(f"{what}={option!r}: give a number, or a dict or tuple of numbers.")
    return own


def _by_name(what: str, option: Any, form: Form, parts: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """Return {name: number} from an option of one number for all or one for each, without those that are None."""
    option_form, given = parts_of(option)
    if option_form == "array":
        return dict.fromkeys(parts, option)
    if option_form != form or not given.keys() <= parts.keys():
        raise ValueError(f"{what}={option!r} does not fit a {form} of {[*parts]}: it may name only what is there.")
    return {name: number for name, number in given.items() if number is not None}
