"""A bad setting is refused where it is written, with its name, its value and what is allowed."""

from typing import Any

import numpy as np
import pytest
from batchery.configs import TASK_OPTION_NAMES, TaskOptions, WorkerOptions
from batchery.configs.configuration import option_value

INF, NAN = float("inf"), float("nan")
COUNT: list[Any] = [0, -1, 1.0, "64", None, True]
LIMIT: list[Any] = [10**30, 0, -1, 1.5, "9", True]
AMOUNT: list[Any] = [-1, -0.5, NAN, INF, "5", None, True]

BAD_TASK_OPTIONS: dict[str, tuple[list[Any], str]] = {
    "max_batch_size": ([65_537, *COUNT], "a whole number from 1 to 65,536"),
    "max_batch_tokens": (LIMIT, 'a whole number from 1 to 1,000,000,000,000, or None ("none" in a file)'),
    "preferred_batch_sizes": (
        [4, "4", (0,), (8, 4), [8, 4], (4, 4), (1.5,), {4, 8}, None],
        "a list of ascending whole numbers from 1 up",
    ),
    "small_batch_threshold": (LIMIT, 'a whole number from 1 to 1,000,000,000,000, or None ("none" in a file)'),
    "max_wait_ms": ([1e9 + 1, *AMOUNT], "a number of ms from 0 to 1,000,000,000"),
    "look_ahead": ([10_001, *COUNT], "a whole number of batches from 1 to 10,000"),
    "max_age_ms": ([-1, -INF, NAN, "5", None, True], "a number of ms from 0 up, or inf"),
    "batch_time_limit_s": ([0, 1e6 + 1, *AMOUNT], "a number of seconds above 0, up to 1,000,000"),
    "max_deliveries": ([1_000_001, *COUNT], "a whole number from 1 to 1,000,000"),
    "preprocess_threads": ([1001, *COUNT], "a whole number from 1 to 1,000"),
}
BAD_WORKER_OPTIONS: dict[str, tuple[list[Any], str]] = {
    "tasks": (["embed", ["embed", 3], [""], 3, {"embed"}], "a list of tasks' names; without it all are served"),
    "device": (["", None, 0], '"auto" or a torch device'),
    "warm_up_s": ([1e6 + 1, *AMOUNT], "a number of seconds from 0 to 1,000,000"),
    "lease_s": ([0, 0.5, 1e6 + 1, *AMOUNT], "a number of seconds from 1 to 1,000,000"),
    "claim_max_bytes": ([10**12 + 1, *COUNT], "a whole number of bytes from 1 to 1,000,000,000,000"),
    "held_max_bytes": ([10**30, *COUNT], "a whole number of bytes from 1 to 1,000,000,000,000"),
    "dead_letters": ([1_000_001, -1, 1.0, "64", None, True], "a whole number from 0 to 1,000,000"),
    "dead_letters_max_bytes": ([10**30, *COUNT], "a whole number of bytes from 1 to 1,000,000,000,000"),
    "dead_letters_max_age_s": ([0, 1e6 + 1, *AMOUNT], "a number of seconds above 0, up to 1,000,000"),
    "drain_timeout_s": ([1e6 + 1, *AMOUNT], "a number of seconds from 0 to 1,000,000"),
}
BAD = [
    (options, name, value, allowed)
    for options, table in ((TaskOptions, BAD_TASK_OPTIONS), (WorkerOptions, BAD_WORKER_OPTIONS))
    for name, (values, allowed) in table.items()
    for value in values
]


@pytest.mark.parametrize(("options", "name", "value", "allowed"), BAD)
def test_a_bad_value_is_refused_with_its_name_and_what_is_allowed(
    options: Any, name: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ValueError, match=name) as refusal:
        options(**{name: value})
    assert str(refusal.value) == f"{name} = {value!r} is not possible: it must be {allowed}."


@pytest.mark.parametrize(
    "values",
    [
        {"max_batch_size": 1, "look_ahead": 1, "max_wait_ms": 0, "max_age_ms": 0, "batch_time_limit_s": 0.1},
        {"max_batch_tokens": 1, "max_wait_ms": 2.5, "max_age_ms": INF},
        {"max_batch_size": 65_536, "look_ahead": 10_000, "max_wait_ms": 1e9, "batch_time_limit_s": 1e6},
    ],
)
def test_values_at_the_edge_are_accepted(values: dict[str, Any]) -> None:
    options = TaskOptions(**values)
    assert {name: getattr(options, name) for name in values} == values


def test_a_number_of_numpy_counts_as_the_float_that_it_is() -> None:
    assert TaskOptions(max_wait_ms=np.float64(2.5)).max_wait_ms == 2.5
    with pytest.raises(ValueError, match="max_wait_ms"):
        TaskOptions(max_wait_ms=np.float64(-1))


def test_options_that_contradict_each_other_are_refused_as_such() -> None:
    assert TaskOptions(preferred_batch_sizes=[4, 64], max_batch_size=64).preferred_batch_sizes == (4, 64)
    with pytest.raises(ValueError, match=r"^preferred_batch_sizes = \[4, 64\] exceed max_batch_size = 32\.$"):
        TaskOptions(preferred_batch_sizes=[4, 64])
    assert option_value(TaskOptions, "preferred_batch_sizes", [4, 64]) == [4, 64]


def test_the_worker_takes_a_device_by_name_and_waits_for_nothing_if_told_so() -> None:
    options = WorkerOptions(device="cuda:1", drain_timeout_s=0, lease_s=1)
    assert (options.device, options.drain_timeout_s, options.lease_s) == ("cuda:1", 0, 1)


def test_every_setting_is_tested_here() -> None:
    assert set(BAD_TASK_OPTIONS) == {*TaskOptions.__struct_fields__}
    assert set(BAD_WORKER_OPTIONS) == {*WorkerOptions.__struct_fields__}


def test_settings_do_not_change_once_they_are_made() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        TaskOptions().max_batch_size = 3  # type: ignore[misc]  # the point of the test
    with pytest.raises(AttributeError, match="immutable"):
        WorkerOptions().device = "cpu"  # type: ignore[misc]


def test_options_do_not_change_with_the_list_that_they_were_made_of() -> None:
    sizes = [4, 8]
    batching = TaskOptions(preferred_batch_sizes=sizes)
    sizes.append(16)
    assert batching.preferred_batch_sizes == (4, 8)
    names = ["embed"]
    options = WorkerOptions(tasks=names)
    names.append("classify")
    assert options.tasks == ("embed",)
    assert WorkerOptions(tasks=[]).tasks == ()


def test_look_ahead_is_counted_in_full_batches() -> None:
    assert TaskOptions(max_batch_size=10, look_ahead=3).max_waiting == 30


def test_the_options_of_a_task_are_known_by_name() -> None:
    assert set(TASK_OPTION_NAMES) == set(BAD_TASK_OPTIONS)
