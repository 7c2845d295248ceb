"""The short way to a queue on Redis: what kombu does for an ordinary message, at a third of its cost."""

import base64
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kombu import Producer, Queue

from . import private
from .codec import serializer
from .codec.json import encode_json

#: What Celery passes to `Producer.publish` for any task, and the message properties that kombu makes nothing else of.
_OPTIONS = frozenset(
    "exchange routing_key serializer compression retry retry_policy declare headers timeout confirm_timeout "
    "delivery_mode priority correlation_id reply_to expiration argsrepr kwargsrepr "
    "immediate mandatory".split()  # of which Redis knows nothing
)
#: Properties that are in a message only if the caller gave them.
_OPTIONAL = ("argsrepr", "kwargsrepr")
_KOMBUS_PUBLISH = ("kombu.messaging", "Producer.publish")
_CONTENT = {"json": ("application/json", "utf-8"), serializer.NAME: (serializer.CONTENT_TYPE, "binary")}


class Publisher:
    """A kombu producer that puts ordinary messages into their Redis list itself; all others go kombu's way.

    FastCall is: JSON or the serializer of ours, not compressed, to one queue by its name, with no option that is not
    known here. Stands in for the producer where Celery publishes a task; signals, events, declared queues, retries and
    errors are Celery's and kombu's.
    """

    def __init__(self, producer: Any) -> None:
        """Send with `producer`'s connection."""
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        """Be the producer in everything else."""
        return getattr(self._producer, name)

    def publish(self, body: Any, **options: Any) -> Any:
        """Send one message; `body` and `options` are those of `kombu.Producer.publish`."""
        ours = self.is_ordinary(options) and not _is_wrapped()
        message = _message(body, options) if ours else None
        return self._producer.publish(body, **options) if message is None else self.send([message], options)

    def is_ordinary(self, options: Mapping[str, Any]) -> bool:
        """Whether messages published with these options may take the short way."""
        return (
            options.keys() <= _OPTIONS
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
            connection.transport_options.update(policy)  # as kombu does: connecting keeps to it, too
            send = connection.ensure(self._producer, send, **policy)
        send(messages, options)

    def _send(self, messages: Sequence[bytes], options: Mapping[str, Any]) -> None:
        channel = self._producer.channel
        declared = private.declared_entities(channel)
        for entity in options["declare"] or ():
            if hash(entity) not in declared:
                self._producer.maybe_declare(entity, retry=options["retry"], **options["retry_policy"])
        queue = private.queue_key(channel, options["routing_key"], options.get("priority") or 0)
        private.redis_client(channel).lpush(queue, *messages)


def message_properties(options: Mapping[str, Any], task_id: str, tag: str) -> dict[str, Any]:
    """Return a message's properties, as kombu makes them of these options; `tag` must be its alone."""
    properties = {
        "correlation_id": task_id,
        "reply_to": options.get("reply_to", ""),
        "delivery_mode": options["delivery_mode"],
        "delivery_info": {"exchange": "", "routing_key": options["routing_key"]},
        "priority": options.get("priority") or 0,
        "body_encoding": "base64",
        "delivery_tag": tag,
    }
    properties.update((name, options[name]) for name in _OPTIONAL if name in options)
    if (seconds := options.get("expiration")) is not None:
        properties["expiration"] = str(int(1000 * seconds))
    return properties


def encode_message(
    headers: Mapping[str, Any],
    properties: Mapping[str, Any],
    body: bytes,
    serializer_name: str,
    encode: Callable[[Any], bytes] = encode_json,
) -> bytes:
    """Return a message as kombu's Redis transport writes it; `encode` makes JSON of headers and properties."""
    content_type, content_encoding = _CONTENT[serializer_name]
    return encode(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": content_encoding,
            "content-type": content_type,
            "headers": headers,
            "properties": properties,
        }
    )


def _message(body: Any, options: Mapping[str, Any]) -> bytes | None:
    """Return one message; None if it cannot be encoded: kombu knows what to say of it."""
    name = options["serializer"]
    try:
        encoded = serializer.join(*serializer.encode_by(name, body))
        properties = message_properties(options, options["correlation_id"], str(uuid.uuid4()))
        return encode_message(options["headers"], properties, encoded, name)
    except Exception:  # whatever an object's own methods raise
        return None


def _is_wrapped() -> bool:
    """Whether `Producer.publish` is another function than kombu's own, as with tracing libraries: they want to see each
    call. A wrapper may carry the name of what it wraps, but then it also has `__wrapped__`.
    """
    publish = Producer.publish
    name = (getattr(publish, "__module__", None), getattr(publish, "__qualname__", None))
    return name != _KOMBUS_PUBLISH or hasattr(publish, "__wrapped__")


def _expires(entity: Any) -> bool:
    """Whether a queue removes itself: kombu says anew with each message when."""
    return isinstance(entity, Queue) and bool(entity.expires or "x-expires" in (entity.queue_arguments or ()))
