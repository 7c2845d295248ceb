"""Storing results, and acknowledging: in one step where broker and results share a server, else one after the other."""

import hashlib
from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery, states
from celery.app.task import Context
from celery.backends.base import compress_payload
from celery.backends.redis import CHORD_PART_RETURN_LUA, RedisBackend

from ....batchers import BatchFailed, Outcome
from ....producer.codec.json import encode_json
from ...broker import ChordPart, Leases, ResultRetention, Settled, Settlement
from ...broker.client import largest_value, same_server
from ..wire.request import LightRequest
from .results import SERIALIZERS, encode_part, encode_success, encode_value

#: SHA-1 of the script by which Celery 5.7 adds a part to a chord. With another one, Celery adds all parts by itself.
_KNOWN_PART_SCRIPT = "b8fc152c83a7e634103ccebd49dcd3146a8f4366"


class ResultStore:
    """Settles ordinary successes in bulk."""

    def __init__(self, app: Celery, leases: Leases, broker: Any) -> None:
        """Store results in `app`'s backend; `broker` is the client that the leases use."""
        self._app = app
        self._leases = leases
        backend = self._backend = app.backend
        fast = (
            isinstance(backend, RedisBackend)
            and backend.serializer in SERIALIZERS
            and same_server(broker, backend.client)
        )
        self._extended = app.conf.find_value_for_key("extended", "result")
        self._shares_server = fast and not self._extended
        #: Whether `settle` takes parts of chords.
        self.takes_parts = self._shares_server and _keeps_parts_as_known(backend)
        self._is_redis = isinstance(backend, RedisBackend)
        #: Bytes of one result that the backend takes, where it is another Redis than the broker; 0: not asked yet.
        self._largest_elsewhere = 0
        self._keep = ResultRetention()
        self._key_prefix = self._group_prefix = ""
        if fast:
            self._key_prefix = backend.get_key_for_task("-").decode()[:-1]
            self._group_prefix = backend.get_key_for_group("-").decode()[:-1]
            self._keep = ResultRetention(
                int(backend.connparams.get("db") or 0),
                int(backend.expires or 0),
                bool(backend._chord_zset),
                int(backend.chord_expires or 0),
                int(backend._chord_result_expires or 0),
            )

    def settle(self, successes: Sequence[Outcome], acks: Sequence[Settlement]) -> list[Settled]:
        """Store and acknowledge `successes`, acknowledge `acks`; return what became of each success.

        Can be repeated after an error: what was settled is passed over. `encode` comes first. A value that the backend
        cannot take turns into that job's failure, and is not acknowledged.
        """
        if self._shares_server:
            largest = self._leases.largest_value if successes else 0
            sizes = [len(outcome.job.reply.result) for outcome in successes]
            fitting: Sequence[Outcome] = successes
            if max(sizes, default=0) > largest:
                fitting = [each for each, size in zip(successes, sizes, strict=True) if _fits(each, size, largest)]
            settlements = [self._encoded(outcome) for outcome in fitting]
        else:
            settlements = [Settlement(outcome.job.reply.claim) for outcome in successes if self._stored(outcome)]
        done = self._leases.settle([*settlements, *acks], self._keep)
        answers = {item.claim.tag: answer for item, answer in zip(settlements, done, strict=False)}
        return [answers.get(outcome.job.reply.claim.tag, Settled.LOST) for outcome in successes]

    def encode(self, outcomes: Sequence[Outcome]) -> None:
        """Encode the outcomes' values, if that is ours to do; one that cannot be turns into that job's failure."""
        if not self._shares_server:
            return
        done_at, backend = self._app.now().isoformat(), self._backend
        for outcome in outcomes:
            request: LightRequest = outcome.job.reply
            group, parent = request.headers.group, request.headers.parent_id
            try:
                value = encode_value(backend.prepare_value(outcome.value), backend.serializer)
            except Exception as exc:
                outcome.error = exc
                continue
            request.result = self._compressed(encode_success(request.id, value, done_at, group, parent))
            if request.in_chord:
                request.part = self._compressed(encode_part(request.id, value))

    def _compressed(self, payload: bytes) -> Any:
        compression = self._backend.compression
        return compress_payload(payload, compression) if compression else payload

    def _encoded(self, outcome: Outcome) -> Settlement:
        request: LightRequest = outcome.job.reply
        part = self._part(request) if request.in_chord else None
        if _ignored(request):
            return Settlement(request.claim, part=part)
        return Settlement(request.claim, self._key_prefix + request.id, request.result, part)

    def _part(self, request: LightRequest) -> ChordPart | None:
        group, index = request.headers.group, request.headers.group_index
        if not group:
            return None
        chord = self._group_prefix + group
        keys = [chord + ".j", chord + ".t", chord + ".s", chord + ".d", chord, chord + ".c"]
        return ChordPart(keys, request.id, "+inf" if index is None else str(index), request.part)

    def _stored(self, outcome: Outcome) -> bool:
        request: LightRequest = outcome.job.reply
        if outcome.error is not None or not self._leases.still_held(request.claim):
            return False
        if not _ignored(request):
            if not self.fits(outcome):
                return False
            context = Context(request.full.request_dict)
            if self._extended and outcome.batch is not None:
                # Celery adds a request's stamps to an extended result: this is one more.
                context.stamps = {**(context.stamps or {}), "batch": outcome.batch.provenance(outcome.job)}
                context.stamped_headers = [*(context.stamped_headers or ()), "batch"]
            try:
                self._app.backend.store_result(request.id, outcome.value, states.SUCCESS, request=context)
            except redis.RedisError:
                raise
            except Exception as exc:
                outcome.error = exc
                return False
        return True

    def fits(self, outcome: Outcome) -> bool:
        """Whether Redis, if it is the backend, takes the value; one that is too large turns into the job's failure.

        Not for what `settle` stores on the broker's own server: it looks for itself.

        Raises:
            redis.RedisError: the server could not be asked how much it takes.
        """
        if not self._is_redis:
            return True
        backend, value = self._app.backend, outcome.value
        try:
            size = len(encode_json(value) if backend.serializer == "json" else backend.encode(value))
        except Exception:  # whoever stores it will find that, too
            return True
        return _fits(outcome, size, self._largest)

    @property
    def _largest(self) -> int:
        if self._shares_server:
            return self._leases.largest_value
        self._largest_elsewhere = self._largest_elsewhere or largest_value(self._app.backend.client)
        return self._largest_elsewhere


def _keeps_parts_as_known(backend: RedisBackend) -> bool:
    """Whether parts of chords are kept as our script keeps them."""
    script = hashlib.sha1(CHORD_PART_RETURN_LUA.encode(), usedforsecurity=False).hexdigest()
    own = type(backend).on_chord_part_return is not RedisBackend.on_chord_part_return
    return script == _KNOWN_PART_SCRIPT and not own


def _fits(outcome: Outcome, size: int, largest: int) -> bool:
    """Whether the server takes a result of `size` bytes; one that is too large turns into the job's failure."""
    reply = outcome.job.reply
    if size <= largest or (reply.ignore_result and not getattr(reply, "in_chord", False)):
        return True
    outcome.error = BatchFailed(
        f"The result is {size} bytes, and the server takes {largest} at most. Return less, or store it elsewhere and "
        "return its address, or raise the server's proto-max-bulk-len."
    )
    return False


def _ignored(request: LightRequest) -> bool:
    said = request.headers.ignore_result
    return bool(request.task.ignore_result if said is None else said)
