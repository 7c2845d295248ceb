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
from ... import tuning
from ...broker import ChordPart, Leases, ResultRetention, Settled, Settlement
from ...broker.client import same_server
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

        Can be repeated after an error: what was settled is passed over. `encode` comes first. A value that another
        backend cannot take turns into that job's failure, and is not acknowledged.
        """
        if self._shares_server:
            settlements = [self._encoded(outcome) for outcome in successes]
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
                request.result = self._payload(request, encode_success(request.id, value, done_at, group, parent))
                if request.in_chord:
                    request.part = self._payload(request, encode_part(request.id, value))
            except Exception as exc:
                outcome.error = exc

    def _payload(self, request: LightRequest, encoded: bytes) -> Any:
        compression = self._backend.compression
        payload = compress_payload(encoded, compression) if compression else encoded
        _refuse_too_large(request, len(payload))
        return payload

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
        """Return whether Redis, if that is the backend, takes the value; if not, it turns into the job's failure.

        `encode` checks what `settle` stores on the broker's own server.
        """
        backend, value = self._app.backend, outcome.value
        try:
            if self._is_redis:
                size = len(encode_json(value) if backend.serializer == "json" else backend.encode(value))
                _refuse_too_large(outcome.job.reply, size)
        except BatchFailed as exc:
            outcome.error = exc
        except Exception:  # the code that stores it meets the same error, and handles it
            pass
        return outcome.error is None


def _keeps_parts_as_known(backend: RedisBackend) -> bool:
    """Whether parts of chords are kept as our script keeps them."""
    script = hashlib.sha1(CHORD_PART_RETURN_LUA.encode(), usedforsecurity=False).hexdigest()
    own = type(backend).on_chord_part_return is not RedisBackend.on_chord_part_return
    return script == _KNOWN_PART_SCRIPT and not own


def _refuse_too_large(request: Any, size: int) -> None:
    if size > tuning.MAX_RESULT_BYTES and (not request.ignore_result or getattr(request, "in_chord", False)):
        raise BatchFailed(
            f"The result is {size} bytes, but Redis takes {tuning.MAX_RESULT_BYTES} at most. Return less, or store the "
            "result elsewhere and return its address."
        )


def _ignored(request: LightRequest) -> bool:
    said = request.headers.ignore_result
    return bool(request.task.ignore_result if said is None else said)
