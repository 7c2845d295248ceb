"""Names of keys: Celery's own for queues, ours for leases."""

import json
from dataclasses import dataclass
from functools import cached_property

#: String: the tags of the batch that a worker runs. What tells the worker's tags apart follows.
RUNNING = "batchery:running:"
#: Queue of one worker alone, by the name of its node: the broadcast calls of batch tasks that it has received.
BROADCAST = "batchery:broadcast:"

#: Hash: what is known of a queue's dead letters. The queue's name follows.
DEAD = "batchery:dead:"


@dataclass(frozen=True)
class Queue:
    """One Celery queue on Redis, and the leases on its messages.

    `name` is Celery's; the rest is kombu's: `prefix` the `global_keyprefix` that goes before every key, `priorities`
    the priority steps in serving order, `separator` what stands between a queue's name and a priority other than 0.
    """

    name: str
    prefix: str = ""
    priorities: tuple[int, ...] = (0, 3, 6, 9)
    separator: str = "\x06\x16"

    @cached_property
    def lists(self) -> list[str]:
        """The lists that hold the queue's messages, one a priority."""
        return [
            f"{self.prefix}{self.name}{self.separator}{priority}" if priority else f"{self.prefix}{self.name}"
            for priority in self.priorities
        ]

    @cached_property
    def unacked(self) -> str:
        """Hash: tag to `[message, exchange, routing key]`, in kombu's format."""
        return f"{self.prefix}batchery:unacked:{self.name}"

    @cached_property
    def workers(self) -> str:
        """Sorted set: worker by the end (Redis TIME, in seconds) of its lease on all that it holds of this queue."""
        return f"{self.prefix}batchery:workers:{self.name}"

    @cached_property
    def aside(self) -> str:
        """Hash: worker to the number of messages that it holds and that are no jobs."""
        return f"{self.prefix}batchery:aside:{self.name}"

    @cached_property
    def running(self) -> str:
        """Beginning of the keys of running notes, which the worker's part of a tag completes."""
        return f"{self.prefix}{RUNNING}"

    @cached_property
    def suspect(self) -> str:
        """String: the tag of the suspect that runs, while its message is claimed."""
        return f"{self.prefix}batchery:suspect:{self.name}"

    @cached_property
    def dead(self) -> str:
        """Hash: a dead letter's id to what is known of it; "" to the bytes of all."""
        return f"{self.prefix}{DEAD}{self.name}"

    @cached_property
    def dead_messages(self) -> str:
        """Hash: a dead letter's id to its message."""
        return f"{self.prefix}batchery:dead_messages:{self.name}"

    @cached_property
    def dead_index(self) -> str:
        """Sorted set: a dead letter's id by the time (Redis TIME, in seconds) at which it was given up."""
        return f"{self.prefix}batchery:dead_index:{self.name}"

    @cached_property
    def envelope_end(self) -> str:
        """What follows the message in the hash's value: exchange "" and the queue's name as routing key."""
        return f',"",{json.dumps(self.name)}]'
