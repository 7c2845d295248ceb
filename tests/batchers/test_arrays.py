"""Arrays are recognised without importing torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from batchery.batchers.arrays import as_array, is_torch


def test_batchers_never_import_torch() -> None:
    code = (
        "import sys; from batchery.batchers.pad import PadBatcher; from batchery.batchers.bucket import BucketBatcher;"
        "from batchery.batchers.concat import ConcatBatcher; from batchery.batchers.stack import StackBatcher;"
        "[b.unbatch(*b.batch([[1], [2]])) for b in (PadBatcher(), BucketBatcher(), ConcatBatcher(), StackBatcher())];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tensors_of_subclasses_are_tensors_and_torch_sizes_are_not() -> None:
    assert is_torch(torch.nn.Parameter(torch.ones(1)))
    assert is_torch(type("Image", (torch.Tensor,), {})())
    assert not is_torch(torch.Size([1]))
    assert not is_torch(torch.float32)
    assert not is_torch(np.ones(1))


@pytest.mark.parametrize(
    "value",
    [None, "text", ["a", "b"], [None], [{}], [2**80], [np.ones(1)], [torch.ones(1)], [[1], [2, 3]], [], [[], []], {1}],
)
def test_a_value_that_is_no_array_of_numbers_is_refused_by_its_name(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="argument 'x'"):
        as_array(value, "argument 'x'")


def test_lists_of_numbers_become_arrays_of_their_own_dtype() -> None:
    assert as_array([1, 2], "x").dtype == np.int64
    assert as_array([[1.5], [2]], "x").shape == (2, 1)
    assert as_array([True], "x").dtype == np.bool_
    assert as_array(3, "x").shape == ()
