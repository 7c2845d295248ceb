"""Chooses from which queues the next claim takes, and how many messages of each. No I/O."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ...broker import Queue
from ...engine import Capacity
from ..compat.admission import PLAIN


class Selection(NamedTuple):
    """What to claim."""

    queues: list[Queue]
    #: Messages to take from each of the queues at most.
    limits: list[int]
    #: Bytes to take from all of them at most.
    max_bytes: int
    #: Whether a queue was left out because a task that it delivers has no capacity.
    left_out: bool


class QueueSelector:
    """Chooses queues whose tasks have capacity.

    A worker learns a message's task only by claiming the message. It must not keep claiming from a queue that delivers
    tasks without capacity, nor neglect a queue that delivers others. So a queue is assumed to deliver the same tasks as
    in its last claim. Where that has changed, a claim exceeds a task's capacity once.
    """

    def __init__(self) -> None:
        self._delivers: dict[str, Collection[str]] = {}
        self._claims = 0

    def next(self, queues: Sequence[Queue], capacity: Mapping[str, Capacity], max_bytes: int) -> Selection:
        """Return what to claim: a different queue comes first each time, and at most `max_bytes`.

        `capacity` is by task, and a missing task has none.
        """
        self._claims += 1
        split = self._claims % len(queues) if queues else 0
        # Queues that deliver the same task get an equal part of its capacity each.
        parts = Counter(task for queue in queues for task in self._delivers.get(queue.name, ()))
        chosen: list[Queue] = []
        limits: list[int] = []
        for queue in (*queues[split:], *queues[:split]):
            # An unknown queue may deliver any task, so it may exceed a task's capacity, but only once.
            tasks = self._delivers.get(queue.name, capacity)
            if tasks and all(task in capacity for task in tasks):
                chosen.append(queue)
                # Plain tasks' messages that are too many go back, so they do not limit what batch tasks get.
                limiting = [task for task in tasks if task != PLAIN] or tasks
                limits.append(min(-(-capacity[task].jobs // (parts[task] or 1)) for task in limiting))
                max_bytes = min(max_bytes, *(capacity[task].bytes for task in tasks))
        return Selection(chosen, limits, max_bytes, len(chosen) < len(queues))

    def learn(self, delivered: Iterable[tuple[str, str]]) -> None:
        """Note what a claim delivered: pairs of a queue's name and a task, in any number."""
        delivers: dict[str, set[str]] = {}
        for queue, task in delivered:
            delivers.setdefault(queue, set()).add(task)
        self._delivers.update(delivers)
