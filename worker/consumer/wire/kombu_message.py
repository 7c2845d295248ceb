"""Messages that take Celery's own way: kombu's message objects, acknowledged through our leases."""

from collections.abc import Callable
from typing import Any

import msgspec
from celery.worker.request import Request
from kombu.transport import virtual
from kombu.utils import json as kombu_json

from ...broker import Claim
from .compression import check_size, decompress
from .decode import MAX_BODY_BYTES


class _Headers(msgspec.Struct, gc=False):
    task: Any = None
    id: Any = None


class _Envelope(msgspec.Struct, gc=False):
    headers: _Headers


_peek = msgspec.json.Decoder(_Envelope)


def addressee(message: bytes) -> tuple[str | None, str | None]:
    """Return a message's task and id as far as it tells them, whatever else is wrong with it."""
    try:
        headers = _peek.decode(message).headers
    except Exception:  # as in `decode`
        return None, None
    task, task_id = (name if isinstance(name, str) and name else None for name in (headers.task, headers.id))
    return task, task_id


class LeaseChannel:
    """What a kombu message needs of its channel; an acknowledgement ends the lease."""

    no_ack_consumers = None
    codecs = virtual.Channel.codecs
    decode_body = virtual.Channel.decode_body

    def __init__(self, acknowledge: Callable[[str], None], requeue: Callable[[str], None]) -> None:
        """Send acknowledgements and requeues on, by tag."""
        self._acknowledge = acknowledge
        self._requeue = requeue

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:  # noqa: ARG002 - kombu's signature
        """Acknowledge."""
        self._acknowledge(delivery_tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give up on the message, or give it back."""
        (self._requeue if requeue else self._acknowledge)(delivery_tag)


def to_kombu(claim: Claim, channel: LeaseChannel, accept: Any, max_bytes: int = MAX_BODY_BYTES) -> virtual.Message:
    """Return kombu's message for a claim; its delivery tag is the claim's, its body is decompressed.

    Raises:
        ValueError, KeyError, TypeError: it is no message of kombu's, or its body has more than `max_bytes`.
    """
    check_size(len(claim.message) // 2, max_bytes)  # base64 adds a third to the body
    payload = kombu_json.loads(claim.message)
    payload["properties"]["delivery_tag"] = claim.tag
    # Not left to kombu, which would decompress it whatever its size.
    compression = payload["headers"].pop("compression", None) if payload.get("headers") else None
    message = virtual.Message(payload, channel=channel, accept=accept)
    if compression:
        message.body = decompress(message.body, compression, max_bytes)
    check_size(len(message.body or b""), max_bytes)
    return message


def to_request(message: virtual.Message, task: Any, consumer: Any) -> Request:
    """Return Celery's request for a message, as its default strategy would make it."""
    return Request(
        message,
        on_ack=message.ack_log_error,
        on_reject=message.reject_log_error,
        app=consumer.app,
        hostname=consumer.hostname,
        eventer=consumer.event_dispatcher,
        task=task,
        connection_errors=consumer.connection_errors,
        body=message.body,
        headers=message.headers,
        decoded=False,
        utc=consumer.app.uses_utc_timezone(),
    )
