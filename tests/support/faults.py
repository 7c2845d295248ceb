"""Faults at any call of some packages: an import hook numbers their calls, and an order makes one of them fail, once.

The process that runs the code installs the hook before it imports the code. Another process gives the orders, through
memory that both share. Nothing is traced, so that the code runs at nearly its usual speed.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import importlib.machinery
import mmap
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import redis

from tests.support.paths import ROOT

#: The packages whose calls are numbered, and their folders.
PACKAGES = {
    "batchery.worker.broker": ROOT / "worker" / "broker",
    "batchery.worker.consumer": ROOT / "worker" / "consumer",
}

#: What an order may do to a call. "late" is a connection that is lost once the call was made, with its answer.
KINDS = ("value", "memory", "connection", "response", "late", "hang")

#: Marks in `Orders.seen`: what was called is Python's own, Batchery's, or others' (Celery, Redis, users' hooks).
PYTHONS, OURS, OTHERS = 1, 2, 3

#: Seconds that a call hangs at most, if nobody releases it.
LONGEST_HANG_S = 60.0


class Place(NamedTuple):
    """A call in the code."""

    file: Path
    line: int
    call: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} {self.call}"


class _Numbering(ast.NodeTransformer):
    """Lets each call inside a function ask `__at__(number, function)` for the function to call."""

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self.calls: list[ast.Call] = []
        self._depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        # Decorators, defaults and annotations are no calls of the function.
        self._depth += 1
        node.body = [self.visit(statement) for statement in node.body]
        self._depth -= 1
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        # A `super()` looks for its caller's frame, and cannot fail.
        if self._depth and not (isinstance(node.func, ast.Name) and node.func.id == "super"):
            number = self._first + len(self.calls)
            self.calls.append(ast.parse(ast.unparse(node), mode="eval").body)  # type: ignore[arg-type]
            self.calls[-1].lineno = node.lineno
            self.generic_visit(node)
            asked = ast.Call(ast.Name("__at__", ast.Load()), [ast.Constant(number), node.func], [])
            node.func = ast.fix_missing_locations(ast.copy_location(asked, node.func))
        else:
            self.generic_visit(node)
        return node


@functools.cache
def _calls(file: Path) -> Sequence[ast.Call]:
    numbering = _Numbering()
    numbering.visit(ast.parse(file.read_text()))
    return numbering.calls


@functools.cache
def _files() -> Sequence[Path]:
    return [file for folder in PACKAGES.values() for file in sorted(folder.rglob("*.py"))]


@functools.cache
def places() -> Sequence[Place]:
    """All calls in functions of the packages; their numbers are their positions."""
    return [Place(file, call.lineno, ast.unparse(call.func)) for file in _files() for call in _calls(file)]


class _Memory(ctypes.Structure):
    _fields_ = (
        ("place", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("fired", ctypes.c_int32),
        ("released", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("seen", ctypes.c_uint8 * 16_384),
    )


class Orders:
    """What one process orders, and what another one has done: a file that both have in their memory."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(ctypes.sizeof(_Memory)))
        with file.open("r+b") as opened:
            self.memory = _Memory.from_buffer(mmap.mmap(opened.fileno(), 0))
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Order nothing, and let go of what hangs."""
        self.memory.place, self.memory.released = -1, 1

    def give(self, place: int, kind: str) -> None:
        """Let the next call at that place fail."""
        self.memory.place, self.memory.fired, self.memory.released = -1, 0, 0
        self.memory.kind = KINDS.index(kind)
        self.memory.place = place

    @property
    def fired(self) -> bool:
        return bool(self.memory.fired)

    def seen(self) -> dict[int, int]:
        """The places at which calls were made since the last time, and their marks."""
        marks = bytes(self.memory.seen)
        ctypes.memset(self.memory.seen, 0, len(marks))
        return {number: mark for number, mark in enumerate(marks) if mark}

    # -- In the process that runs the code -------------------------------------------------------------------------

    def at(self, number: int, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function to call at a place."""
        memory = self.memory
        if not memory.seen[number]:
            memory.seen[number] = _mark(function)
        if memory.place != number:
            return function
        with self._lock:
            if memory.place != number:
                return function
            memory.place = -1
        return functools.partial(self._fail, KINDS[memory.kind], function)

    def _fail(self, kind: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.memory.fired = 1
        if kind == "hang":
            end = time.monotonic() + LONGEST_HANG_S
            while not self.memory.released and time.monotonic() < end:
                time.sleep(0.02)
        if kind in ("late", "hang"):
            answer = function(*args, **kwargs)
            if kind == "hang":
                return answer
        raise _ERRORS[kind]()


_ERRORS: dict[str, Callable[[], Exception]] = {
    "value": lambda: ValueError("injected"),
    "memory": lambda: MemoryError("injected"),
    "connection": lambda: redis.ConnectionError("injected"),
    "response": lambda: redis.ResponseError("WRONGTYPE injected"),
    "late": lambda: redis.ConnectionError("injected, once the call was made"),
}


def _mark(function: Any) -> int:
    module = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
    top = str(module).partition(".")[0]
    return OURS if top == "batchery" else PYTHONS if top in sys.stdlib_module_names else OTHERS


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module whose calls ask `orders` which function to call."""

    orders: Orders

    def get_code(self, fullname: str) -> CodeType:
        file = Path(self.path).resolve()
        first = 0
        for other in _files():
            if other.resolve() == file:
                break
            first += len(_calls(other))
        tree = _Numbering(first).visit(ast.parse(file.read_text()))
        return compile(tree, str(self.path), "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__at__"] = lambda number, function: self.orders.at(number, function)
        super().exec_module(module)


class Hook:
    """A finder that goes before all others in `sys.meta_path`."""

    @classmethod
    def install(cls) -> None:
        sys.meta_path.insert(0, cls())

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if not name.startswith(tuple(PACKAGES)):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec

    @staticmethod
    def obey(orders: Orders) -> None:
        """Let `orders` decide from now on."""
        _Loader.orders = orders


def threads_of_ours() -> Iterator[str]:
    """The names of the threads of this process that are ours."""
    return (thread.name for thread in threading.enumerate() if thread.name.startswith("batchery-"))
