"""Which queues are claimed from: no task's backlog keeps the queues of another from being claimed."""

from __future__ import annotations

from collections.abc import Mapping

from batchery.worker.broker import Queue
from batchery.worker.consumer.compat.admission import CELERY, PLAIN
from batchery.worker.consumer.fast.queue_selector import QueueSelector, Selection
from batchery.worker.engine import Capacity
from hypothesis import given
from hypothesis import strategies as st

A, B = Queue("for-a"), Queue("for-b")
MANY = 10**9


def capacity(**jobs: int) -> dict[str, Capacity]:
    return {task: Capacity(count, MANY) for task, count in jobs.items()}


def names(selection: Selection) -> set[str]:
    return {queue.name for queue in selection.queues}


def learned() -> QueueSelector:
    """Knows that `A` delivers a, and `B` delivers b."""
    selector = QueueSelector()
    selector.learn([("for-a", "a"), ("for-b", "b"), ("for-a", "a")])
    return selector


def test_each_queue_is_claimed_from_first_in_its_turn() -> None:
    selector = learned()
    first = [selector.next([A, B], capacity(a=5, b=5), MANY).queues[0] for _ in range(4)]
    assert sorted(queue.name for queue in first) == ["for-a", "for-a", "for-b", "for-b"]
    assert first[0] != first[1]


def test_a_queue_whose_task_has_no_capacity_is_left_out() -> None:
    selection = learned().next([A, B], capacity(b=5), MANY)
    assert selection == Selection([B], [5], MANY, left_out=True)


def test_each_queue_gets_its_tasks_capacity() -> None:
    selection = learned().next([A, B], capacity(a=300, b=5), MANY)
    assert dict(zip(selection.queues, selection.limits, strict=True)) == {A: 300, B: 5}
    assert not selection.left_out


def test_a_queue_that_delivers_several_tasks_gets_the_least_of_their_capacities() -> None:
    selector = QueueSelector()
    selector.learn([("for-a", "a"), ("for-a", "b")])
    assert selector.next([A], capacity(a=300, b=5), MANY).limits == [5]
    assert selector.next([A], capacity(a=300), MANY).queues == []


def test_queues_that_deliver_the_same_task_get_an_equal_part_of_its_capacity() -> None:
    selector = QueueSelector()
    selector.learn([("for-a", "a"), ("for-b", "a")])
    assert selector.next([A, B], capacity(a=301), MANY).limits == [151, 151]


def test_an_unknown_queue_is_tried_even_if_some_task_is_full() -> None:
    selector = QueueSelector()
    selector.learn([("for-a", "a")])
    selection = selector.next([A, B], capacity(b=300, c=5), MANY)
    assert (selection.queues, selection.limits) == ([B], [5])
    assert selector.next([A, B], {}, MANY).queues == []


def test_the_last_claim_from_a_queue_tells_what_it_delivers() -> None:
    selector = learned()
    selector.learn([("for-b", "a")])
    assert names(selector.next([A, B], capacity(b=5), MANY)) == set()
    selector.learn([("for-b", "b")])
    assert names(selector.next([A, B], capacity(b=5), MANY)) == {"for-b"}


def test_a_claim_takes_no_more_bytes_than_the_least_capacity_of_its_tasks() -> None:
    free = {"a": Capacity(10, 1000), "b": Capacity(10, 300), CELERY: Capacity(10, 5)}
    assert learned().next([A, B], free, 800).max_bytes == 300
    assert learned().next([A], free, 800).max_bytes == 800
    assert learned().next([A], free, MANY).max_bytes == 1000


def test_plain_tasks_limit_only_a_queue_that_delivers_nothing_else() -> None:
    selector = QueueSelector()
    selector.learn([("for-a", "a"), ("for-a", PLAIN), ("for-b", PLAIN)])
    free = {"a": Capacity(300, MANY), PLAIN: Capacity(4, MANY)}
    assert dict(zip(*selector.next([A, B], free, MANY)[:2], strict=True)) == {A: 300, B: 2}


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=400),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=400),
    st.integers(1, 40),
)
def test_everything_is_claimed_and_no_capacity_is_exceeded_by_much(one: list[str], other: list[str], most: int) -> None:
    """Jobs leave one by one, the oldest first, so that every task progresses as long as its queue is claimed from."""
    selector, waiting, held = QueueSelector(), {"for-a": one[::-1], "for-b": other[::-1]}, list[str]()

    def free() -> Mapping[str, Capacity]:
        left = {task: most - held.count(task) for task in "abc"}
        return capacity(**{task: count for task, count in left.items() if count > 0})

    while any(waiting.values()) or held:
        selection = selector.next([A, B], free(), MANY)
        claimed = []
        for queue, limit in zip(selection.queues, selection.limits, strict=True):
            line = waiting[queue.name]
            claimed += [(queue.name, line.pop()) for _ in range(min(limit, len(line)))]
        selector.learn(claimed)
        held += [task for _, task in claimed]
        assert all(held.count(task) <= 3 * most + 1 for task in "abc")
        assert held or not any(waiting.values()), "something waits, nothing is held and nothing was claimed"
        del held[:1]
