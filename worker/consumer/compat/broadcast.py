"""Broadcast queues: each worker receives every call. A batch task's call goes on as if it were sent to this worker.

Celery keeps a broadcast queue as a Redis channel, from which nothing can be claimed. So such a call is put into a queue
that this worker alone claims from, where it has a lease, and is not lost with the process.
"""

from collections.abc import Callable, Container, Sequence

from kombu import Message, Queue
from kombu.utils.json import dumps

from ... import tuning
from ...broker.keys import BROADCAST


def queue_name(node: str) -> str:
    """Return the name of the queue for the broadcast calls that this node of Celery's receives."""
    return f"{BROADCAST}{node}"


def claimed_names(queues: Sequence[Queue], node: str) -> list[str]:
    """Return the names of the queues that a worker claims from, of all that it consumes."""
    names = [queue.name for queue in queues if queue.exchange.type != "fanout"]
    return names if len(names) == len(queues) else [*names, queue_name(node)]


def receiving(
    node: str, served: Container[str], unserved: Container[str], handle: Callable[[Message], object]
) -> Callable[[Message], object]:
    """Return a handler of the messages that Celery itself fetches, which are those of broadcast queues.

    Calls of batch tasks that are `served` go into the queue of this `node` of Celery's. Those that are `unserved` are
    dropped, because other workers have received them too. All other messages are left to `handle`.
    """
    queue = queue_name(node)

    def receive(message: Message) -> object:
        task = message.headers.get("task") if isinstance(message.headers, dict) else None
        if not isinstance(task, str) or not (task in served or task in unserved):
            return handle(message)
        if task in served:
            channel = message.channel
            with channel.conn_or_acquire() as client:  # it adds the prefix to a key of some commands
                client.lpush(queue, dumps(message.serializable()))
                client.expire(channel.global_keyprefix + queue, tuning.BROADCAST_EXPIRES_S)
        return message.ack()

    return receive
