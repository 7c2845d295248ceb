"""The fast decode: from the bytes of an ordinary Celery message to a job, without Celery's or kombu's objects.

Ordinary is: task protocol 2, JSON, nothing to be done before or after but run and answer. Whatever is unusual (ETA,
chord, callbacks, another serializer, a header we do not know) is not decoded here: Celery's own objects do that.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

#: What `kombu.utils.json` writes for values that JSON does not have; only kombu can read it.
_KOMBU_TYPE = b"__type__"


# gc=False: these hold nothing that could refer back to them, and are made for every message.


class DeliveryInfo(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Where the message was sent."""

    exchange: str = ""
    routing_key: str = ""
    redelivered: bool = False


class Properties(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """kombu's message properties."""

    delivery_tag: str
    body_encoding: str
    delivery_info: DeliveryInfo
    correlation_id: str = ""
    reply_to: str = ""
    delivery_mode: int = 2
    #: What kombu would clamp is unusual.
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] | None = None


class Headers(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Celery's task headers, protocol 2. A type narrower than Celery's makes a message unusual."""

    task: str
    id: str
    lang: str = "py"
    shadow: str | None = None
    eta: None = None
    expires: str | None = None
    group: str | None = None
    group_index: int | None = None
    retries: int = 0
    timelimit: tuple[None, None] = (None, None)
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str = ""
    kwargsrepr: str = ""
    origin: str = ""
    ignore_result: bool | None = None
    replaced_task_nesting: int = 0
    stamped_headers: None = None
    stamps: dict[str, None] = {}
    batchery_enqueued_at: float | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message as kombu's Redis transport writes it; msgspec undoes the base64 of the body."""

    body: bytes
    content_encoding: str = msgspec.field(name="content-encoding")
    content_type: str = msgspec.field(name="content-type")
    headers: Headers
    properties: Properties


class Embed(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What a call brings along for afterwards: nothing, if it is ordinary."""

    callbacks: tuple[()] | None = None
    errbacks: tuple[()] | None = None
    chain: tuple[()] | None = None
    chord: None = None


class Ordinary(msgspec.Struct, gc=False):
    """An ordinary call, decoded."""

    headers: Headers
    args: list[Any]
    kwargs: dict[str, Any]
    priority: int
    #: Seconds since the epoch; None: it never expires.
    expires_at: float | None


_message = msgspec.json.Decoder(Message)
_body = msgspec.json.Decoder(tuple[list[Any], dict[str, Any], Embed])


def decode(message: bytes) -> Ordinary | None:
    """Decode an ordinary message; None if it is unusual, or no Celery message at all."""
    try:
        decoded = _message.decode(message)
        properties = decoded.properties
        if decoded.content_type != "application/json" or decoded.content_encoding != "utf-8":
            return None
        if properties.body_encoding != "base64" or _KOMBU_TYPE in decoded.body:
            return None
        args, kwargs, _ = _body.decode(decoded.body)
        expires_at = _timestamp(decoded.headers.expires)
    except Exception:  # also RecursionError and OverflowError: no message may end the thread that claims
        return None
    return Ordinary(decoded.headers, args, kwargs, properties.priority or 0, expires_at)


def _timestamp(expires: str | None) -> float | None:
    if expires is None:
        return None
    moment = datetime.fromisoformat(expires)
    if moment.tzinfo is None:
        raise ValueError("an expiry without a time zone: Celery knows what the app means by it")
    return moment.astimezone(UTC).timestamp()
