"""A task's signature: from one call's arguments to one item, and from items to columns."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any, cast

from .. import private

_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class CallSignature:
    """The parameters of one call, `self` left out."""

    def __init__(self, attribute: Any) -> None:
        """Read a function as it stands in a class: static, or a method whose first parameter is no part of the call."""
        skip_self = not isinstance(attribute, staticmethod)
        function = getattr(attribute, "__func__", attribute)
        try:
            signature = inspect.signature(function)
        except ValueError:
            raise TypeError(f"the parameters of {function!r} cannot be read: write a function that calls it.") from None
        self._parameters = list(signature.parameters.values())[1 if skip_self else 0 :]
        self._signature = signature.replace(parameters=self._parameters)
        self._all_named = all(parameter.kind in _NAMED for parameter in self._parameters)
        #: Whether a call has several arguments, so that its item is a tuple of them.
        self.many = len(self._parameters) != 1
        #: `check(*args, **kwargs)` raises a TypeError unless they fit. It is quick, because each call is checked.
        self.check = _quick_check(function, skip_self) or (lambda *args, **kwargs: self.item(args, kwargs))

    def require_columns(self, what: str) -> None:
        """Raise a TypeError unless every parameter of `what` can become a column of a batch."""
        if not self._parameters:
            raise TypeError(f"{what} needs a parameter: it gets the items as a list.")
        if odd := ", ".join(str(parameter) for parameter in self._parameters if parameter.kind not in _NAMED):
            advice = f"Give {what} plain parameters, each of which gets a list, or define preprocess() for one call."
            raise TypeError(f"{odd} cannot become a column of a batch. {advice}")

    def item(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return one call's item: its argument, or the tuple of its arguments with the defaults filled in.

        Raises:
            TypeError: the arguments do not fit the signature.
        """
        if kwargs or not self._all_named or len(args) != len(self._parameters):
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = tuple(bound.arguments.values())
        return tuple(args) if self.many else args[0]

    def items(self, calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
        """Return each call's item, or the TypeError of a call that does not fit."""
        simple = self._all_named and not self.many  # most calls are, and then cost a third
        return [
            args[0] if simple and len(args) == 1 and not kwargs else attempt(self.item, args, kwargs)
            for args, kwargs in calls
        ]

    def merge(self, old_args: Any, old_kwargs: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments with which a call is retried: where one kind is None, it is kept from the old call.

        Celery does the same, but by the names of the parameters of `run`.
        """
        if (args is None) == (kwargs is None):
            return args, kwargs
        names = [parameter.name for parameter in self._parameters if parameter.kind in _NAMED]
        if kwargs is None:
            return args, {name: value for name, value in (old_kwargs or {}).items() if name not in names[: len(args)]}
        old, kwargs = list(old_args or ()), dict(kwargs)
        return [*map(kwargs.pop, names, old), *old[len(names) :]], kwargs

    def as_args(self, item: Any) -> tuple[Any, ...]:
        """Return the arguments of the call that `item` stands for."""
        return item if self.many and isinstance(item, tuple) else (item,)

    def columns(self, items: Sequence[Any]) -> list[list[Any]]:
        """Return a list for each parameter: the items' values for it."""
        return [list(column) for column in zip(*items, strict=True)] if self.many else [list(items)]


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """Return what the function returns, or the exception that it raises."""
    try:
        return function(*args)
    except Exception as exc:
        return exc


def is_plain_function(option: Any, *, decorated: bool) -> bool:
    """Whether a function in a class body is no method: given to the decorator, or without a first parameter `self`.

    Builtins, classes and objects with `__call__` are no methods either.
    """
    if not callable(option) or isinstance(option, staticmethod):
        return False
    is_method = hasattr(type(option), "__get__") and not isinstance(
        option, MethodDescriptorType | WrapperDescriptorType
    )
    return decorated or not is_method or next(iter(inspect.signature(option).parameters), None) != "self"


def _quick_check(function: Any, skip_self: bool) -> Callable[..., Any] | None:
    """Return Celery's own check, which is compiled; None where Celery cannot make one."""
    if not isinstance(function, FunctionType):
        return None
    if not function.__name__.isidentifier():  # a lambda
        code, space = function.__code__, function.__globals__
        named = FunctionType(code, space, "preprocess", function.__defaults__, function.__closure__)
        named.__kwdefaults__ = function.__kwdefaults__
        function = named
    return cast(Callable[..., Any], private.head_from_fun(function, bound=skip_self))
