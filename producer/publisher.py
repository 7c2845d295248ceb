"""The fast path to a queue on Redis: what kombu does for most messages, at a third of its cost."""

import base64
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from kombu import Producer, Queue

from . import private
from .codec import serializer
from .codec.json import encode_json
from .connections import limit_broker

#: Options of `kombu.Producer.publish` that the fast path knows. Celery passes them for every task.
_KNOWN_OPTIONS = frozenset(
    "exchange routing_key serializer compression retry retry_policy declare headers timeout confirm_timeout "
    "delivery_mode priority correlation_id reply_to expiration argsrepr kwargsrepr "
    "immediate mandatory".split()  # these two mean nothing on Redis
)
_CONTENT = {"json": ("application/json", "utf-8"), serializer.NAME: (serializer.CONTENT_TYPE, "binary")}


class Publisher:
    """Stands in for a kombu producer and takes the fast path: it puts a message into its queue's Redis list itself.

    A fast call is one message, JSON or in our serializer and not compressed, to one queue by its name. Its options are
    all known here. Any other message goes through kombu. Signals, events, declared queues, retries and errors stay
    Celery's and kombu's.
    """

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        limit_broker(producer.connection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, **options: Any) -> Any:
        """Send one message; `body` and `options` are those of `kombu.Producer.publish`."""
        message = _encode_call(body, options) if self.takes(options) and not _is_wrapped() else None
        return self._producer.publish(body, **options) if message is None else self.send([message], options)

    def takes(self, options: Mapping[str, Any]) -> bool:
        """Whether messages with these options may take the fast path."""
        return (
            options.keys() <= _KNOWN_OPTIONS
            and options.get("exchange") == ""
            and options["serializer"] in _CONTENT
            and not (options["compression"] or options["timeout"] or options["confirm_timeout"])
            and options["delivery_mode"] in (1, 2)
            and (options.get("priority") or 0) in range(10)
            and not any(map(_expires, options["declare"] or ()))
            and not private.collects_batch(self._producer)
            and self._producer.connection.transport.driver_type == "redis"
        )

    def send(self, messages: Sequence[bytes], options: Mapping[str, Any]) -> None:
        """Put messages into their queue, in one command; declare it and retry as the options say."""
        send: Callable[..., None] = self._send
        if options["retry"]:
            connection, policy = self._producer.connection, options["retry_policy"]
            connection.transport_options.update(policy)  # as kombu does, so that connecting keeps to the policy too
            send = connection.ensure(self._producer, send, **policy)
        send(messages, options)

    def _send(self, messages: Sequence[bytes], options: Mapping[str, Any]) -> None:
        channel = self._open_channel()
        declared = private.declared_entities(channel)
        for entity in options["declare"] or ():
            if hash(entity) not in declared:
                self._producer.maybe_declare(entity, retry=options["retry"], **options["retry_policy"])
        channel = self._open_channel()  # declaring may have made another connection
        queue = private.queue_key(channel, options["routing_key"], options.get("priority") or 0)
        try:
            private.redis_client(channel).lpush(queue, *messages)
        except redis.ReadOnlyError as exc:  # kombu would keep the connection to what is no longer the master
            channel.pool.disconnect()
            raise redis.ConnectionError(f"{exc}") from exc

    def _open_channel(self) -> Any:
        """Return the producer's channel; `send` makes another connection where that was closed meanwhile."""
        channel = self._producer.channel
        if channel.connection is None:
            raise redis.ConnectionError("The channel's connection was lost.")
        return channel


def kombu_message(headers: Any, body: bytes, options: Mapping[str, Any], task_id: str, tag: str) -> dict[str, Any]:
    """Return a message as kombu's Redis transport writes it in JSON, with the properties that kombu makes of `options`.

    No other message may have the `tag`.
    """
    properties = {
        "correlation_id": task_id,
        "reply_to": options.get("reply_to", ""),
        "delivery_mode": options["delivery_mode"],
        "delivery_info": {"exchange": "", "routing_key": options["routing_key"]},
        "priority": options.get("priority") or 0,
        "body_encoding": "base64",
        "delivery_tag": tag,
    }
    properties.update((name, options[name]) for name in ("argsrepr", "kwargsrepr") if name in options)
    if (seconds := options.get("expiration")) is not None:
        properties["expiration"] = str(int(1000 * seconds))
    content_type, content_encoding = _CONTENT[options["serializer"]]
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": content_encoding,
        "content-type": content_type,
        "headers": headers,
        "properties": properties,
    }


def _encode_call(body: Any, options: Mapping[str, Any]) -> bytes | None:
    """Return the message of one call; None if it cannot be encoded, because kombu's error says why."""
    try:
        encoded = serializer.join(*serializer.encode_by(options["serializer"], body))
        task_id, tag = options["correlation_id"], str(uuid.uuid4())
        return encode_json(kombu_message(options["headers"], encoded, options, task_id, tag))
    except Exception:  # whatever an object's own methods raise
        return None


def _is_wrapped() -> bool:
    """Whether anything stands in for `Producer.publish`: tracing libraries wrap it, because they want to see each call.

    A wrapper may carry the name of kombu's function, but then it also has `__wrapped__`.
    """
    publish = Producer.publish
    name = (getattr(publish, "__module__", None), getattr(publish, "__qualname__", None))
    return name != ("kombu.messaging", "Producer.publish") or hasattr(publish, "__wrapped__")


def _expires(entity: Any) -> bool:
    """Whether a queue removes itself. Kombu puts that off with each message, and the fast path does not."""
    return isinstance(entity, Queue) and bool(entity.expires or "x-expires" in (entity.queue_arguments or ()))
