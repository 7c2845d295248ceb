"""Batches of items of different lengths, padded to the longest."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from typing import Any, Literal

from .arrays import check_holds, full, real_cells, stack
from .batcher import Form, arguments, assemble, check_rows, check_shapes, class_of, form_of, gather, label, split
from .errors import OutputMismatch

#: One number for all arguments (or outputs), or one for each: by key, or by position. None: not this one.
PerArgument = float | Mapping[str, float | None] | Sequence[float | None]
PerOutput = int | Mapping[str, int | None] | Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Span:
    """How one argument was padded: each item's own length, and the common one."""

    lengths: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Padded:
    """The context of a batch: its number of items, and how each argument was padded, in the order of `padding`."""

    count: int
    spans: Mapping[Hashable, Span]

    @property
    def first(self) -> Span:
        """The one that an item's length is counted by."""
        return next(iter(self.spans.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PadBatcher:
    """Items that differ in size along `axis`: padded to the longest in the batch, and stacked along a new dim 0.

    Items of shape (length, ...) become (items, longest, ...); dtype, library and device stay. Each argument is padded
    to its own longest. Arguments that are not padded must have one shape. Row i of the outputs belongs to item i. See
    `batcher.py` for the forms of items and outputs. Lists are converted each time they are looked at: arrays are
    faster.

    `batch` raises `TypeError` or `ValueError` for items that do not go together, and where a dtype cannot hold the
    padding value; `unbatch` raises `OutputMismatch` for any other number of rows, or of entries in a list of outputs,
    and for an output to be cut that is not as long as the inputs were padded, and `ValueError` where `unpad` names what
    the model does not return.
    """

    #: What to pad with. One value pads every argument that has `axis`; a dict or a tuple those that it names, by key
    #: or by position (None: not this one). The first argument padded is the one that an item's length is counted by.
    padding: PerArgument = field(default=0, hash=False)
    #: Where the padding goes: after the item ("right") or before it ("left").
    side: Literal["right", "left"] = "right"
    #: The axis of an item along which sizes differ; negative counts from the last. (What a tokenizer returns with
    #: `return_tensors` is (1, length): take the first dim off in preprocess, or no two lengths share a batch.)
    axis: int = 0
    #: Pad to a multiple of this, or to the first of these (ascending) lengths that is long enough; items longer than
    #: all of them are padded to the longest. None: to the longest.
    pad_to: int | Sequence[int] | None = None
    #: Add a mask to the inputs: bools of shape (items, longest), True where a cell is no padding, of the first
    #: argument padded. For dict items the name to add it under; for others True: it is appended as the last input.
    mask: str | bool | None = None
    #: Cut outputs back to the item's own length: the axis, counted without dim 0 (so that an output like the input has
    #: the same axis); negative counts from the last. A dict or a tuple names the outputs to cut. The length is that of
    #: the padded argument of the output's name or position; if there is none, that of the first. Entries of a list of
    #: outputs are never cut.
    unpad: PerOutput | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Check the options, and copy those that could be changed from outside."""
        _set(self, "padding", _numbers("padding", self.padding))
        if self.unpad is not None:
            _set(self, "unpad", _numbers("unpad", self.unpad))
        if self.side not in ("right", "left"):
            raise ValueError(f"side={self.side!r}: give 'right' or 'left'.")
        if self.pad_to is not None and not isinstance(self.pad_to, int):
            _set(self, "pad_to", ascending("pad_to", self.pad_to))
        elif self.pad_to is not None and self.pad_to < 1:
            raise ValueError(f"pad_to={self.pad_to}: give a multiple of 1 or more.")

    def batch(self, items: Sequence[Any]) -> tuple[Any, Padded]:
        """See `Batcher.batch`."""
        form, columns = gather(items)
        padded = self._padded(form, {name: column[0] for name, column in columns.items()})
        inputs, spans = {}, {}
        for name, column in columns.items():
            if name in padded:
                inputs[name], spans[name] = self._pad(name, column, *padded[name])
            else:
                check_shapes(name, column, None, "give this argument a padding value, or all items the same shape.")
                inputs[name] = stack(column)
        context = Padded(len(items), {name: spans[name] for name in padded})
        if self.mask:
            self._add_mask(form, inputs, context.first, columns[next(iter(padded))][0])
        return assemble(form, inputs), context

    def unbatch(self, outputs: Any, context: Padded) -> list[Any]:
        """See `Batcher.unbatch`."""
        cuts: dict[Hashable, int] = {}
        if self.unpad is not None and not isinstance(outputs, list):
            form = form_of(outputs)
            names = [*outputs] if form == "dict" else [*range(len(outputs))] if form == "tuple" else [None]
            cuts = _by_name("unpad", self.unpad, form, names)

        def rows(array: Any, name: Hashable) -> list[Any]:
            check_rows(array, context.count, name)
            if name not in cuts:
                return list(array)
            return self._cut(array, name, cuts[name], context.spans.get(name, context.first))

        return split(outputs, context.count, rows)

    def length(self, item: Any) -> int:
        """Return the size along `axis` of the first argument padded."""
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
        """Return {name: (axis, value)} of the arguments to pad, the one that lengths are counted by first."""
        padded = {}
        for name, value in _by_name("padding", self.padding, form, [*arrays]).items():
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
        span = Span(lengths, self._size(max(lengths)))
        if min(lengths) == span.size:
            return stack(column), span
        buffer = full((len(column), *shape[:axis], span.size, *shape[axis + 1 :]), value, column[0])
        for index, array in enumerate(column):
            buffer[(index, *self._cells(lengths[index], span.size, axis))] = array
        return buffer, span

    def _size(self, longest: int) -> int:
        if self.pad_to is None:
            return longest
        if isinstance(self.pad_to, int):
            return -(-longest // self.pad_to) * self.pad_to
        return edge(self.pad_to, longest) or longest

    def _cells(self, length: int, size: int, axis: int) -> tuple[slice, ...]:
        """Return the index of an item's own cells in its padded row."""
        start = 0 if self.side == "right" else size - length
        return (*(slice(None),) * axis, slice(start, start + length))

    def _add_mask(self, form: Form, inputs: dict[Hashable, Any], span: Span, like: Any) -> None:
        name = self.mask if form == "dict" else "mask"
        if name is True or name in inputs:
            raise ValueError(f"mask={self.mask!r}: give a name that is not among the arguments {[*inputs]}.")
        inputs[name] = real_cells(span.lengths, span.size, self.side, like)

    def _cut(self, array: Any, name: Hashable, axis: int, span: Span) -> list[Any]:
        dims = array.ndim - 1
        size = array.shape[1:][axis] if -dims <= axis < dims else "no size"
        if size != span.size:
            what = f"Each row of output {name!r}" if name is not None else "Each row of the output"
            raise OutputMismatch(
                f"{what} has {size} along axis {axis}, the inputs were padded to {span.size}: "
                f"name the outputs to be cut, if not all are, in unpad (it is {self.unpad!r})."
            )
        pairs = zip(array, span.lengths, strict=True)
        return [row[self._cells(length, span.size, axis % dims)] for row, length in pairs]


def ascending(option: str, lengths: Sequence[int]) -> tuple[int, ...]:
    """Return `lengths` as a tuple; a ValueError that names `option` unless they are positive and ascending."""
    edges = tuple(lengths)
    if not edges or edges[0] < 1 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"{option}={lengths!r}: give one or more positive lengths, ascending.")
    return edges


def edge(edges: Iterable[int], length: int) -> int | None:
    """Return the first of the (ascending) edges that `length` does not exceed; None if it exceeds them all."""
    return next((edge for edge in edges if length <= edge), None)


def _set(batcher: Any, name: str, value: Any) -> None:
    object.__setattr__(batcher, name, value)  # the dataclass is frozen, for all but its own __post_init__


def _numbers(what: str, option: Any) -> Any:
    """Return a copy of the option `what` that nobody else can change; a TypeError unless it is made of numbers."""
    own, values = option, [option]
    if isinstance(option, Mapping):
        own = dict(option)
        values = [*own.values()]
    elif isinstance(option, (list, tuple)):
        own = tuple(option)
        values = [*own]
    if own is None or any(not isinstance(value, (Real, type(None))) for value in values):
        raise TypeError(f"{what}={option!r}: give a number, or a dict or tuple of numbers.")
    return own


def _by_name(what: str, option: Any, form: Form, names: list[Any]) -> dict[Hashable, Any]:
    """Return an option of one number for all, or of one for each, as {name: number}; what is None is left out."""
    if not isinstance(option, (dict, tuple)):
        return dict.fromkeys(names, option)
    given = option if isinstance(option, dict) else dict(enumerate(option))
    if form_of(option) != form or not given.keys() <= set(names):
        raise ValueError(f"{what}={option!r} does not fit a {form} of {names}: it must name what is there.")
    return {name: number for name, number in given.items() if number is not None}
