"""Messages that go over the Celery bridge: kombu's message objects, which our leases acknowledge."""

from collections.abc import Callable, Container
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.transport.virtual import Channel, Message
from kombu.utils import json as kombu_json

from ... import tuning
from ...broker import Claim
from .compression import check_size, decompress


class _Headers(msgspec.Struct, gc=False):
    task: Any = None
    id: Any = None
    eta: Any = None


class _Envelope(msgspec.Struct, gc=False):
    headers: _Headers


_envelope = msgspec.json.Decoder(_Envelope)


class Addressee(NamedTuple):
    """Whom a message is for, as far as it tells, whatever else is wrong with it."""

    task: str | None = None
    id: str | None = None
    #: Seconds since the epoch; None: at once, or only Celery knows what the message means.
    eta: float | None = None


def addressee(message: bytes) -> Addressee:
    """Return whom a message is for, and when."""
    try:
        headers = _envelope.decode(message).headers
    except Exception:  # also RecursionError: no message may end the thread that claims
        return Addressee()
    task, task_id = (name if isinstance(name, str) and name else None for name in (headers.task, headers.id))
    return Addressee(task, task_id, _timestamp(headers.eta))


def _timestamp(eta: object) -> float | None:
    try:
        moment = datetime.fromisoformat(eta) if isinstance(eta, str) else None
        return moment.timestamp() if moment is not None and moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


class LeasedMessage(Message):
    """kombu's message, to which there can be weak references."""


class LeaseChannel:
    """What a kombu message needs of its channel. An acknowledgement ends the lease."""

    no_ack_consumers = None
    codecs = Channel.codecs
    decode_body = Channel.decode_body

    def __init__(self, acknowledge: Callable[[str], None], requeue: Callable[[str], None]) -> None:
        """Call `acknowledge(tag)` for messages that are through, and `requeue(tag)` for those that are not."""
        self._acknowledge = acknowledge
        self._requeue = requeue

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:  # noqa: ARG002 - kombu's signature
        """Acknowledge the message."""
        self._acknowledge(delivery_tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give up on the message, or give it back."""
        (self._requeue if requeue else self._acknowledge)(delivery_tag)


def to_kombu(
    claim: Claim,
    channel: LeaseChannel,
    accept: Container[str],
    max_bytes: int = tuning.MAX_BODY_BYTES,
    room: int | None = None,
) -> LeasedMessage:
    """Return kombu's message for a claim. Its delivery tag is the claim's, and its body is decompressed.

    Raises:
        NoRoom: its body was compressed, and has more than `room` bytes.
        ValueError, KeyError, TypeError: it is no message of kombu's, or its body has more than `max_bytes`.
    """
    check_size(len(claim.message) // 2, max_bytes)  # base64 adds a third to the body
    payload = kombu_json.loads(claim.message)
    payload["properties"]["delivery_tag"] = claim.tag
    # Not left to kombu, because kombu would decompress it whatever its size.
    compression = payload["headers"].pop("compression", None) if payload.get("headers") else None
    message = LeasedMessage(payload, channel=channel, accept=accept)
    if compression:
        message.body = decompress(message.body, compression, max_bytes, room)
    check_size(len(message.body or b""), max_bytes)
    return message


def to_request(message: Message, consumer: Consumer) -> Request:
    """Return Celery's request for a message, as Celery's default strategy would make it."""
    return Request(
        message,
        on_ack=message.ack_log_error,
        on_reject=message.reject_log_error,
        app=consumer.app,
        hostname=consumer.hostname,
        eventer=consumer.event_dispatcher,
        task=consumer.app.tasks[message.headers["task"]],
        connection_errors=consumer.connection_errors,
        body=message.body,
        headers=message.headers,
        decoded=False,
        utc=consumer.app.uses_utc_timezone(),
    )
