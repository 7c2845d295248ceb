"""Whose turn it is: from which queues the next claim takes, and how many messages of each. No I/O."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ...broker import Queue
from ...engine import Room

#: Stands, beside the names of batch tasks, for what Celery's own machinery has in hand.
CELERY = ""


class Turn(NamedTuple):
    """What to claim."""

    queues: list[Queue]
    #: Messages to take from each of the queues, at most.
    limits: list[int]
    #: Bytes to take from all of them, at most.
    max_bytes: int
    #: Whether queues were left out until there is room for what they bring.
    left_out: bool


class QueueSelector:
    """Claims from a queue as long as there is room for what it last brought.

    Which task a message is for is known only once it is claimed, and a worker must not keep claiming from a queue that
    brings what it has no room for; nor leave one alone that brings something else. So a queue counts as bringing what
    its last claim brought. Where that has changed it brings more than there is room for, once.
    """

    def __init__(self) -> None:
        """Start without knowing what any queue brings."""
        self._brings: dict[str, Collection[str]] = {}
        self._turn = 0

    def next(self, queues: Sequence[Queue], rooms: Mapping[str, Room], max_bytes: int) -> Turn:
        """Return what to claim: from another queue first each time, and at most `max_bytes`.

        `rooms` are by task; one that is missing has no room.
        """
        self._turn += 1
        split = self._turn % len(queues) if queues else 0
        # Queues that bring the same task have an equal part of its room each.
        parts = Counter(task for queue in queues for task in self._brings.get(queue.name, ()))
        chosen: list[Queue] = []
        limits: list[int] = []
        for queue in (*queues[split:], *queues[:split]):
            # One that has brought nothing yet may bring anything: also what there is no room for, but only once.
            tasks = self._brings.get(queue.name, rooms)
            if tasks and all(task in rooms for task in tasks):
                chosen.append(queue)
                limits.append(min(-(-rooms[task].jobs // (parts[task] or 1)) for task in tasks))
                max_bytes = min(max_bytes, *(rooms[task].bytes for task in tasks))
        return Turn(chosen, limits, max_bytes, len(chosen) < len(queues))

    def brought(self, tasks: Iterable[tuple[str, str]]) -> None:
        """Take note of what a claim brought: pairs of a queue's name and a task, as often as you like."""
        brings: dict[str, set[str]] = {}
        for queue, task in tasks:
            brings.setdefault(queue, set()).add(task)
        self._brings.update(brings)
