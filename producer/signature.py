"""A task's signature: from one call's arguments to one item, and from items to columns."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class CallSignature:
    """The parameters of one call, `self` left out."""

    def __init__(self, function: Callable[..., Any], *, skip_self: bool) -> None:
        """Read the parameters of `function`."""
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[1 if skip_self else 0 :]
        self._signature = signature.replace(parameters=parameters)
        self._parameters = parameters
        #: Whether a call has several arguments: then its item is a tuple of them.
        self.many = len(parameters) != 1

    def unbatchable(self) -> list[str]:
        """Return the parameters that cannot become columns of a batch, as they are written."""
        return [str(parameter) for parameter in self._parameters if parameter.kind not in _NAMED]

    def item(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return one call's item: its argument, or the tuple of its arguments with the defaults filled in.

        Raises:
            TypeError: the arguments do not fit the signature.
        """
        if len(args) == 1 and not kwargs and not self.many:
            return args[0]
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = tuple(bound.arguments.values())
        return values if self.many else values[0]

    def as_args(self, item: Any) -> tuple[Any, ...]:
        """Return the arguments of the call that `item` stands for."""
        return item if self.many and isinstance(item, tuple) else (item,)

    def columns(self, items: Sequence[Any]) -> list[list[Any]]:
        """Return a list for each parameter: the items' values for it."""
        return [list(column) for column in zip(*items, strict=True)]
