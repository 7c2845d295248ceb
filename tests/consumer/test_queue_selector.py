"""Whose turn it is: no task's backlog keeps the queues of another from being claimed."""

from __future__ import annotations

from collections.abc import Mapping

from batchery.worker.broker import Queue
from batchery.worker.consumer.fast.queue_selector import CELERY, QueueSelector, Selection
from batchery.worker.engine import Capacity
from hypothesis import given
from hypothesis import strategies as st

A, B = Queue("for-a"), Queue("for-b")
MANY = 10**9


def rooms(**jobs: int) -> dict[str, Capacity]:
    return {task: Capacity(count, MANY) for task, count in jobs.items()}


def names(turn: Selection) -> set[str]:
    return {queue.name for queue in turn.queues}


def learned() -> QueueSelector:
    """Knows that `A` brings a, and `B` b."""
    turns = QueueSelector()
    turns.learn([("for-a", "a"), ("for-b", "b"), ("for-a", "a")])
    return turns


def test_each_queue_is_claimed_from_first_in_its_turn() -> None:
    turns = learned()
    first = [turns.next([A, B], rooms(a=5, b=5), MANY).queues[0] for _ in range(4)]
    assert sorted(queue.name for queue in first) == ["for-a", "for-a", "for-b", "for-b"]
    assert first[0] != first[1]


def test_a_queue_whose_task_has_no_room_is_left_out() -> None:
    turn = learned().next([A, B], rooms(b=5), MANY)
    assert turn == Selection([B], [5], MANY, left_out=True)


def test_with_room_for_all_no_queue_is_left_out_and_each_gets_its_own_tasks_room() -> None:
    turn = learned().next([A, B], rooms(a=300, b=5), MANY)
    assert dict(zip(turn.queues, turn.limits, strict=True)) == {A: 300, B: 5}
    assert not turn.left_out


def test_a_queue_that_brings_several_tasks_gets_the_least_of_their_rooms() -> None:
    turns = QueueSelector()
    turns.learn([("for-a", "a"), ("for-a", "b")])
    assert turns.next([A], rooms(a=300, b=5), MANY).limits == [5]
    assert turns.next([A], rooms(a=300), MANY).queues == []


def test_queues_that_bring_the_same_task_have_a_part_of_its_room_each() -> None:
    turns = QueueSelector()
    turns.learn([("for-a", "a"), ("for-b", "a")])
    assert turns.next([A, B], rooms(a=301), MANY).limits == [151, 151]


def test_a_queue_that_has_brought_nothing_yet_is_tried_even_if_some_task_is_full() -> None:
    turns = QueueSelector()
    turns.learn([("for-a", "a")])
    turn = turns.next([A, B], rooms(b=300, c=5), MANY)
    assert (turn.queues, turn.limits) == ([B], [5])
    assert turns.next([A, B], {}, MANY).queues == []


def test_what_a_queue_brought_last_is_what_counts() -> None:
    turns = learned()
    turns.learn([("for-b", "a")])
    assert names(turns.next([A, B], rooms(b=5), MANY)) == set()
    turns.learn([("for-b", "b")])
    assert names(turns.next([A, B], rooms(b=5), MANY)) == {"for-b"}


def test_a_claim_takes_no_more_bytes_than_the_least_room_of_those_it_may_bring() -> None:
    room = {"a": Capacity(10, 1000), "b": Capacity(10, 300), CELERY: Capacity(10, 5)}
    assert learned().next([A, B], room, 800).max_bytes == 300
    assert learned().next([A], room, 800).max_bytes == 800
    assert learned().next([A], room, MANY).max_bytes == 1000


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=400),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=400),
    st.integers(1, 40),
)
def test_whatever_queues_bring_all_of_it_is_claimed_and_little_more_than_there_is_room_for(
    one: list[str], other: list[str], most: int
) -> None:
    """Jobs leave one by one, the oldest first: so every task gets on as long as what it brings is claimed."""
    turns, waiting, held = QueueSelector(), {"for-a": one[::-1], "for-b": other[::-1]}, list[str]()

    def free() -> Mapping[str, Capacity]:
        left = {task: most - held.count(task) for task in "abc"}
        return rooms(**{task: count for task, count in left.items() if count > 0})

    while any(waiting.values()) or held:
        turn = turns.next([A, B], free(), MANY)
        claimed = []
        for queue, limit in zip(turn.queues, turn.limits, strict=True):
            line = waiting[queue.name]
            claimed += [(queue.name, line.pop()) for _ in range(min(limit, len(line)))]
        turns.learn(claimed)
        held += [task for _, task in claimed]
        assert all(held.count(task) <= 3 * most + 1 for task in "abc")
        assert held or not any(waiting.values()), "something waits, nothing is held and nothing was claimed"
        del held[:1]
