"""One batch through a model: the device, the order, and the number of outputs."""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from batchery.batchers import Batcher, ListBatcher, OutputMismatch, PadBatcher, StackBatcher
from batchery.batchers.forward import forward


class Model:
    """A model with any `predict` and any batcher."""

    def __init__(self, predict: Any, batcher: Batcher | None = None) -> None:
        self.predict = predict
        self.batcher = batcher or ListBatcher()


def recording(seen: list[Any], note: Callable[[Any], Any]) -> Callable[[Any], list[None]]:
    """A `predict` for one item that appends `note(inputs)` to `seen`."""

    def predict(batch: Any) -> list[None]:
        seen.append(note(batch))
        return [None]

    return predict


def test_one_output_for_each_item_in_order() -> None:
    assert forward(Model(lambda batch: [text.upper() for text in batch]), ["a", "b"], "cpu") == ["A", "B"]


def test_padded_items_come_back_unpadded() -> None:
    model = Model(lambda batch: batch["x"] * 2, PadBatcher(padding={"x": 0}, unpad=0))
    answers = forward(model, [{"x": np.arange(3)}, {"x": np.arange(1, 3)}], "cpu")
    assert [answer.tolist() for answer in answers] == [[0, 2, 4], [2, 4]]


@pytest.mark.parametrize("outputs", [[], [1], [1, 2, 3]])
def test_another_number_of_outputs_than_items_is_an_output_mismatch(outputs: list[int]) -> None:
    with pytest.raises(OutputMismatch, match=f"{len(outputs)} outputs for 2 items"):
        forward(Model(lambda _batch: outputs), ["a", "b"], "cpu")


@pytest.mark.parametrize(("count", "rows"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 5)])
def test_a_batch_is_padded_up_to_the_next_preferred_size_with_rows_that_are_dropped(count: int, rows: int) -> None:
    seen: list[int] = []

    def double(batch: Any) -> Any:
        seen.append(len(batch))
        return batch * 2

    answers = forward(Model(double, StackBatcher()), [*range(count)], "cpu", (2, 4))
    assert [int(answer) for answer in answers] == [2 * item for item in range(count)]
    assert seen == [rows]


class Careless:
    """A user's batcher that does not check the number of outputs."""

    def batch(self, items: Sequence[Any]) -> tuple[Any, None]:
        return items, None

    def unbatch(self, outputs: Any, context: None) -> list[Any]:
        return list(outputs)


def test_the_number_is_checked_even_if_the_batcher_does_not() -> None:
    with pytest.raises(OutputMismatch, match=r"unbatch\(\) returned 1 outputs for 2 items"):
        forward(Model(lambda batch: batch[:1], Careless()), [1, 2], "cpu")


def test_gradients_are_off_while_the_model_runs_and_on_again_after() -> None:
    enabled: list[bool] = []
    forward(Model(recording(enabled, lambda _batch: torch.is_grad_enabled())), [1], "cpu")
    assert enabled == [False]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("module", [None, ModuleType("torch")], ids=["not imported", "being imported"])
def test_a_model_runs_without_torch(module: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if module is None:
        monkeypatch.delitem(sys.modules, "torch")
    else:
        monkeypatch.setitem(sys.modules, "torch", module)
    assert forward(Model(lambda batch: batch * 2, StackBatcher()), [1, 2], "cpu") == [2, 4]


# Torch's "meta" device stands in for a GPU, because a tensor on it has a shape and a device, but no memory.


def devices(value: Any) -> Any:
    """`value` with each tensor replaced by its device."""
    if isinstance(value, dict):
        return {name: devices(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(devices, value))
    return value.device.type if isinstance(value, torch.Tensor) else type(value).__name__


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (torch.ones(2), "meta"),
        ((torch.ones(2), torch.ones(3)), ("meta", "meta")),
        ({"x": torch.ones(2), "y": np.ones(2)}, {"x": "meta", "y": "ndarray"}),
        (np.ones(2), "ndarray"),
    ],
)
def test_tensors_among_the_inputs_are_moved_to_the_device_and_nothing_else_changes(item: Any, expected: Any) -> None:
    seen: list[Any] = []
    forward(Model(recording(seen, devices), StackBatcher()), [item], "meta")
    assert seen == [expected]


class Inputs(NamedTuple):
    """Inputs of a user's own type."""

    ids: Any
    texts: list[str]


class Naming:
    """A user's batcher whose inputs are a named tuple."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def batch(self, items: Sequence[Any]) -> tuple[Inputs, int]:
        return Inputs(self.make((len(items), 2)), list(items)), len(items)

    def unbatch(self, outputs: Any, context: int) -> list[Any]:
        return list(outputs)


@pytest.mark.parametrize(("make", "device"), [(torch.ones, "meta"), (torch.ones, "cpu"), (np.ones, "meta")])
def test_inputs_of_a_users_own_type_keep_it(make: Any, device: str) -> None:
    seen: list[Any] = []
    forward(Model(recording(seen, lambda batch: batch), Naming(make)), ["a"], device)
    (inputs,) = seen
    assert isinstance(inputs, Inputs)
    assert devices(inputs.ids) == (device if make is torch.ones else "ndarray")


def test_tensors_among_the_outputs_come_back_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []

    def to(tensor: torch.Tensor, device: str) -> torch.Tensor:
        moved.append(device)
        return torch.zeros(tensor.shape)

    monkeypatch.setattr(torch.Tensor, "to", to)
    outputs = {"a": torch.ones(1, 2, device="meta"), "states": (torch.ones(1, 3, device="meta"),)}
    (answer,) = forward(Model(lambda _batch: outputs, StackBatcher()), [1], "cpu")
    assert devices(answer) == {"a": "cpu", "states": ("cpu",)}
    assert moved == ["cpu", "cpu"]
