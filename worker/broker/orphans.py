"""Messages that the server holds for nobody: orphans of workers whose lease is over, and strays."""

import logging
from collections.abc import Callable, Iterable, Sequence

import redis

from .. import tuning
from .keys import Queue
from .lua import Scripts, tag_of

logger = logging.getLogger(__name__)


def sweep(scripts: Scripts, queues: Iterable[Queue]) -> int:
    """Give back what workers held whose lease is over; return how many messages: 0 if there are none any more.

    Such a worker leaves the workers of the queue once it holds nothing there. Many workers may sweep at once: each goes
    from the newest message to the oldest and passes over what is gone, so that the order of the messages stays.
    """
    count = 0
    for queue in queues:
        now, workers = scripts.workers(queue)
        for lease in workers:
            if lease.end <= now:
                tags = scripts.tags(queue, lease.tag_worker)
                count += scripts.give_back(queue, tags, orphans_of=lease, died=True, most=tuning.SWEEP_MOST)
    return count


def takes_turn(scripts: Scripts, queues: Sequence[Queue], turn_s: float) -> bool:
    """Return whether no worker of the same queues has swept within `turn_s` seconds; with 0 whether there are queues.

    With one sweep in each turn, the server has as little to do for many idle workers on many queues as for one.
    """
    if not queues or not turn_s:
        return bool(queues)
    key = f"{queues[0].prefix}batchery:sweep:{','.join(sorted(queue.name for queue in queues))}"
    try:
        return bool(scripts.client.set(key, 1, nx=True, px=max(1, int(900 * turn_s))))
    except redis.ResponseError:  # a full server takes no key
        return True


def leave(scripts: Scripts, worker: str, queues: Iterable[Queue]) -> None:
    """End a worker's lease, so that it can claim no more, and give back whatever the server still holds for it."""
    for queue in queues:
        scripts.end_lease(queue)
        _, workers = scripts.workers(queue)
        for lease in workers:
            if lease.worker == worker:
                scripts.give_back(queue, scripts.tags(queue, lease.tag_worker), orphans_of=lease)


def give_back_unanswered(scripts: Scripts, unanswered: list[tuple[Sequence[Queue], range]], tag_worker: str) -> None:
    """Give back whatever those claims took whose answer was lost, and forget these claims."""
    while unanswered:
        queues, seqs = unanswered[-1]
        for queue in queues:
            tags = [tag_of(tag_worker, seq, priority) for seq in seqs for priority in queue.priorities]
            scripts.give_back(queue, tags)
        unanswered.pop()


def mend(
    scripts: Scripts, queues: Iterable[Queue], tag_worker: str, next_seq: int, knows: Callable[[str], bool]
) -> None:
    """Give back a worker's strays: messages with numbers below `next_seq` whose tags it does not know."""
    for queue in queues:
        strays = find_strays(scripts, queue, tag_worker, next_seq)
        if own := [tag for tag in strays if not knows(tag)]:
            logger.error("%d messages of %s were held for nobody. They go back to it.", len(own), queue.name)
            scripts.give_back(queue, own)


def find_strays(scripts: Scripts, queue: Queue, tag_worker: str, next_seq: int) -> list[str]:
    """Return the tags of a worker's messages with numbers below `next_seq`, so that it can see which it does not know.

    Workers that hold messages without being among the workers of the queue join them, with a lease that is to run out,
    so that a sweep finds their messages. No way is known for that to happen, except that somebody deletes keys.
    """
    tags = scripts.tags(queue)
    _, workers = scripts.workers(queue)  # asked afterwards, because a worker is there before its first message is
    known = {tag_worker, *(lease.tag_worker for lease in workers)}
    for stranger in {tag.rpartition(":")[0] for tag in tags} - known:
        scripts.add_worker(queue, f"unknown:{stranger}")
    return [tag for tag in tags if tag.startswith(f"{tag_worker}:") and _seq_of(tag) < next_seq]


def _seq_of(tag: str) -> int:
    return int(tag.rpartition(":")[2].partition(".")[0])
