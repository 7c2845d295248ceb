"""Messages that the server holds for nobody: orphans of workers whose lease is over, and strays."""

from collections.abc import Iterable

from .. import tuning
from .keys import Queue
from .lua import Scripts


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


def leave(scripts: Scripts, worker: str, queues: Iterable[Queue]) -> None:
    """End a worker's lease, so that it can claim no more, and give back whatever the server still holds for it."""
    for queue in queues:
        scripts.end_lease(queue)
        _, workers = scripts.workers(queue)
        for lease in workers:
            if lease.worker == worker:
                scripts.give_back(queue, scripts.tags(queue, lease.tag_worker), orphans_of=lease)


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
