"""Giving back: puts messages back to the front of their queue. The two ways of one script."""

from collections.abc import Sequence

from .. import tuning
from .keys import Queue
from .scripts import Scripts


def give_back(scripts: Scripts, queue: Queue, tags: Sequence[str]) -> int:
    """Give back the messages of these tags, in claim order; a tag that is not held is ignored. Return how many."""
    return _call_script(scripts, queue, tags=tags)


def give_back_orphans(scripts: Scripts, queue: Queue, *, most: int) -> int:
    """Give back messages whose lease has run out, whoever held it, in claim order. Return how many."""
    return _call_script(scripts, queue, most_orphans=str(most))


def _call_script(scripts: Scripts, queue: Queue, *, tags: Sequence[str] = (), most_orphans: str = "") -> int:
    keys = [queue.unacked, queue.index, *queue.lists]
    priorities = ",".join(map(str, queue.priorities))
    args = [len(queue.envelope_end), priorities, most_orphans, tuning.SWEEP_MAX_BYTES, *tags]
    return int(scripts.run("give_back", keys, args))
