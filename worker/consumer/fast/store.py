"""Stores the results of fast calls and acknowledges them: in one step if broker and results share a server."""

from collections.abc import Sequence

import redis
from celery import Celery, states
from celery.app.task import Context
from celery.backends.base import compress_payload
from celery.backends.redis import RedisBackend

from ....batchers import Outcome
from ....producer import private
from ...broker import ChordPart, Leases, ResultRetention, Settled, Settlement
from ...broker.client import same_server
from ..wire.request import FastRequest
from .encode_result import SERIALIZERS, encode_part, encode_success, encode_value


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
        Redis: what was settled is passed over.
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
                value = encode_value(backend.prepare_value(outcome.value), backend.serializer)
            except Exception as exc:
                outcome.error = exc
                continue
            request: FastRequest = outcome.job.reply
            key, result, part = "", b"", None
            if not request.ignore_result:
                group, parent = request.headers.group, request.headers.parent_id
                key = self._key_prefix + request.id
                result = self._compressed(encode_success(request.id, value, done_at, group, parent))
            if request.in_chord and request.headers.group:
                part = self._part(request, self._compressed(encode_part(request.id, value)))
            settlements.append(Settlement(request.claim, key, result, part))
        return settlements

    def _compressed(self, payload: bytes) -> bytes:
        compression = self._backend.compression
        return compress_payload(payload, compression) if compression else payload

    def _part(self, request: FastRequest, result: bytes) -> ChordPart:
        chord = f"{self._group_prefix}{request.headers.group}"
        keys = [chord + ".j", chord + ".t", chord + ".s", chord + ".d", chord, chord + ".c"]
        index = request.headers.group_index
        return ChordPart(keys, request.id, "+inf" if index is None else str(index), result)

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
