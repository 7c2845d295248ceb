"""Stores the results of fast calls and acknowledges them: in one step if broker and results share a server."""

from collections.abc import Sequence

import redis
from celery import Celery, states
from celery.app.task import Context
from celery.backends.base import compress_payload
from celery.backends.redis import RedisBackend

from ....batchers import BatchFailed, Outcome
from ....producer import private
from ....producer.codec.json import encode_json
from ....producer.codec.serializer import encode_by
from ... import tuning
from ...broker import ChordPart, Leases, ResultRetention, Settled, Settlement
from ...broker.client import same_server
from ..wire.request import FastRequest
from .encode_result import SERIALIZERS, EncodedValue, encode_part, encode_success


class ResultStore:
    """Settles successes of fast calls in bulk."""

    def __init__(self, app: Celery, leases: Leases, broker: "redis.Redis") -> None:
        """Store results in `app`'s backend; `broker` is the client that the leases use."""
        self._app = app
        self._leases = leases
        backend = self._backend = app.backend
        self._extended = app.conf.find_value_for_key("extended", "result")
        #: Whether the settle script stores results, too.
        self._in_one_step = (
            isinstance(backend, RedisBackend)
            and backend.serializer in SERIALIZERS
            and not self._extended
            and same_server(broker, backend.client)
        )
        #: Whether `settle` takes parts of chords.
        self.takes_parts = self._in_one_step and private.keeps_chord_parts_as_known(backend)
        self._retention = ResultRetention()
        if self._in_one_step:
            self._key_prefix: str = backend.get_key_for_task("-").decode()[:-1]
            self._group_prefix: str = backend.get_key_for_group("-").decode()[:-1]
            in_order, group_expires_s = private.chord_retention(backend)
            self._retention = ResultRetention(
                db=int(backend.connparams.get("db") or 0),
                expires_s=int(backend.expires or 0),
                chord_in_order=in_order,
                chord_expires_s=int(backend.chord_expires or 0),
                group_expires_s=group_expires_s,
            )

    def settle(self, successes: Sequence[Outcome]) -> list[Settled]:
        """Store and acknowledge successes, and return what became of each.

        An outcome whose value cannot be stored gets an error and is `NEEDS_CELERY`. Can be repeated after an error of
        Redis: jobs that are settled already are skipped.
        """
        if self._in_one_step:
            settlements = self.encode(successes)
        else:
            settlements = [Settlement(outcome.job.reply.claim) for outcome in successes if self._store(outcome)]
        answers = iter(self._leases.settle(settlements, self._retention))
        return [Settled.NEEDS_CELERY if outcome.error is not None else next(answers) for outcome in successes]

    def encode(self, successes: Sequence[Outcome]) -> list[Settlement]:
        """Return a settlement for each success whose value can be encoded; the others get an error."""
        done_at, backend = self._app.now().isoformat(), self._backend
        settlements = []
        for outcome in successes:
            if outcome.error is not None:
                continue
            try:
                value = encode_by(backend.serializer, backend.prepare_value(outcome.value))
                settlements.append(self._settlement(outcome.job.reply, value, done_at))
            except Exception as exc:
                outcome.error = exc
        return settlements

    def _settlement(self, request: FastRequest, value: EncodedValue, done_at: str) -> Settlement:
        headers = request.headers
        part = self._part(request, value) if request.in_chord and headers.group else None
        if request.ignore_result:
            return Settlement(request.claim, part=part)
        result = self._payload(encode_success(request.id, value, done_at, headers.group, headers.parent_id))
        return Settlement(request.claim, self._key_prefix + request.id, result, part)

    def _part(self, request: FastRequest, value: EncodedValue) -> ChordPart:
        chord = f"{self._group_prefix}{request.headers.group}"
        keys = [chord + ".j", chord + ".t", chord + ".s", chord + ".d", chord, chord + ".c"]
        index = request.headers.group_index
        place = "+inf" if index is None else str(index)
        return ChordPart(keys, request.id, place, self._payload(encode_part(request.id, value)))

    def _payload(self, encoded: bytes) -> bytes:
        compression = self._backend.compression
        payload: bytes = compress_payload(encoded, compression) if compression else encoded
        if error := _too_large(len(payload)):
            raise error
        return payload

    def _store(self, outcome: Outcome) -> bool:
        """Store a result through Celery's backend, unless its lease is lost; return whether the job may be settled."""
        request: FastRequest = outcome.job.reply
        if outcome.error is not None:
            return False
        if request.ignore_result or not self._leases.still_held(request.claim):
            return True
        context = Context(request.full.request_dict)
        if self._extended and outcome.batch is not None:
            # Celery adds a request's stamps to an extended result, so this is added as one more stamp.
            context.stamps = {**(context.stamps or {}), "batch": outcome.batch.provenance(outcome.job)}
            context.stamped_headers = [*(context.stamped_headers or ()), "batch"]
        try:
            self._app.backend.store_result(request.id, outcome.value, states.SUCCESS, request=context)
        except redis.RedisError:
            raise
        except Exception as exc:
            outcome.error = exc
        return outcome.error is None

    def refuse_too_large(self, outcome: Outcome) -> None:
        """Fail an outcome that Celery is to store if Redis does not take it, because Celery would try for 20 s."""
        backend, request = self._app.backend, outcome.job.reply
        ignored = request.ignore_result and not getattr(request, "in_chord", False)
        if outcome.error is not None or ignored or not isinstance(backend, RedisBackend):
            return
        try:
            encoded = encode_json(outcome.value) if backend.serializer == "json" else backend.encode(outcome.value)
        except Exception:  # the code that stores it meets the same error, and handles it
            return
        outcome.error = _too_large(len(encoded))


def _too_large(size: int) -> BatchFailed | None:
    """Return the error of a result of `size` bytes; None if Redis takes that many."""
    if size <= tuning.MAX_RESULT_BYTES:
        return None
    return BatchFailed(
        f"The result is {size} bytes, but Redis takes {tuning.MAX_RESULT_BYTES} at most. Return less, or store the "
        "result elsewhere and return its address."
    )
