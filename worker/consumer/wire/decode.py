"""Decodes fast calls: from the bytes of a message to a call, without Celery's or kombu's objects.

A fast call uses task protocol 2, and JSON or Batchery's serializer, compressed or not. Nothing has to be done for it
but to run it and to answer, though it may be part of a chord. Every other message goes over the Celery bridge: one with
an ETA, callbacks, another serializer or an unknown header. So do malformed messages, because Celery reports the error.
"""

from collections.abc import Container
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from ....producer.codec.serializer import CONTENT_TYPE, TYPE_MARK, loads
from ... import tuning
from .compression import NoRoom, check_size, decompress

_JSON = "application/json"
_NULL = b"null"
#: More than any option allows, and still a number of ordinary size.
_MOST_LOST = 1_000_000

Args = list[Any]
Kwargs = dict[str, Any]


#: How often a message was lost, as `give_back.lua` counts it: leases that ran out, of these while user code worked on
#: the job, of these while it worked on nothing else.
Lost = tuple[int, int, int]
NEVER_LOST: Lost = (0, 0, 0)


# gc=False because these hold nothing that could refer back to them, and are made for every message.


class DeliveryInfo(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Where the message was sent."""

    exchange: str = ""
    routing_key: str = ""
    redelivered: bool | int = False
    batchery_lost: Lost = NEVER_LOST


class Properties(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """kombu's message properties."""

    delivery_tag: str
    body_encoding: str
    delivery_info: DeliveryInfo
    correlation_id: str = ""
    reply_to: str = ""
    delivery_mode: int = 2
    #: A priority that kombu would clamp makes no fast call.
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] | None = None
    #: For brokers that let messages expire. A worker goes by the header.
    expiration: str = ""
    #: Celery puts them here too, where `apply_async` was given them.
    argsrepr: str = ""
    kwargsrepr: str = ""


class Headers(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Celery's task headers, protocol 2. Where a type is narrower than Celery's, other values make no fast call."""

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
    compression: str | None = None
    batchery_enqueued_at: float | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message as kombu's Redis transport writes it; msgspec undoes the base64 of the body."""

    body: bytes
    content_encoding: str = msgspec.field(name="content-encoding")
    content_type: str = msgspec.field(name="content-type")
    headers: Headers
    properties: Properties


class Embed(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What Celery has to do after a call: nothing, if it is a fast call."""

    callbacks: tuple[()] | None = None
    errbacks: tuple[()] | None = None
    chain: tuple[()] | None = None
    #: The callback, if the call is part of a chord. Nobody looks into it here.
    chord: msgspec.Raw = msgspec.Raw(_NULL)


class FastCall(msgspec.Struct, gc=False):
    """A decoded call that needs nothing of Celery's own machinery."""

    headers: Headers
    args: Args
    kwargs: Kwargs
    priority: int
    #: Seconds since the epoch; None if it never expires.
    expires_at: float | None
    #: Bytes of the decompressed body.
    size: int
    in_chord: bool
    redelivered: bool = False
    lost: Lost = NEVER_LOST


_message = msgspec.json.Decoder(Message)
_body = msgspec.json.Decoder(tuple[Args, Kwargs, Embed])


def decode(
    message: bytes, accept: Container[str], max_bytes: int = tuning.MAX_BODY_BYTES, room: int | None = None
) -> FastCall | None:
    """Decode a fast call; return None for every other message, and for what is no Celery message at all.

    `accept` are the content types that the app reads; the decompressed body may have `max_bytes`.

    Raises:
        NoRoom: the body was compressed, and has more than `room` bytes.
    """
    try:
        check_size(len(message) // 2, max_bytes)  # base64 adds a third to the body
        decoded = _message.decode(message)
        properties, compression = decoded.properties, decoded.headers.compression
        if decoded.content_type not in accept or properties.body_encoding != "base64":
            return None
        body = decompress(decoded.body, compression, max_bytes, room) if compression else decoded.body
        check_size(len(body), max_bytes)
        arguments = _arguments(body, decoded.content_type, decoded.content_encoding)
        if arguments is None:
            return None
        expires_at = _timestamp(decoded.headers.expires)
    except NoRoom:
        raise
    except Exception:  # also RecursionError and OverflowError: no message may end the thread that claims
        return None
    args, kwargs, in_chord = arguments
    info, priority = properties.delivery_info, properties.priority or 0
    call = FastCall(decoded.headers, args, kwargs, priority, expires_at, len(body), in_chord)
    if info.redelivered or info.batchery_lost is not NEVER_LOST:
        call.redelivered, call.lost = True, lost_of(info.batchery_lost)
    return call


def lost_of(counts: object) -> Lost:
    """Return how often a message was lost, by what its `delivery_info` has as `batchery_lost`, whoever wrote it."""
    try:
        lost, deaths, lone = (max(0, min(count, _MOST_LOST)) for count in msgspec.convert(counts, Lost))
    except msgspec.ValidationError:
        return NEVER_LOST
    return lost, deaths, lone


def _arguments(body: bytes, content_type: str, encoding: str) -> tuple[Args, Kwargs, bool] | None:
    """Return the call's arguments, and whether it is part of a chord; None if it is no fast call."""
    if content_type == CONTENT_TYPE:
        # A NUL byte ends this serializer's JSON. It is looked for first, so that no array's bytes are searched.
        if b"\0" in body or TYPE_MARK in body:
            args, kwargs, others = loads(body)
            chord = others.pop("chord", None)
            msgspec.convert(others, Embed)
            plain = isinstance(args, list) and isinstance(kwargs, dict) and isinstance(chord, dict | None)
            return (args, kwargs, chord is not None) if plain else None
    elif content_type != _JSON or encoding != "utf-8" or TYPE_MARK in body:
        return None
    args, kwargs, embed = _body.decode(body)
    chord = bytes(embed.chord)
    return (args, kwargs, chord != _NULL) if chord == _NULL or chord.startswith(b"{") else None


def _timestamp(expires: str | None) -> float | None:
    if expires is None:
        return None
    moment = datetime.fromisoformat(expires)
    if moment.tzinfo is None:
        raise ValueError("Only Celery knows what the app means by an expiry without a time zone.")
    return moment.astimezone(UTC).timestamp()
