"""Results that the settle script stores: what Celery's Redis backend would store, encoded without asking it."""

from collections.abc import Sequence

from celery import Celery
from celery.backends.base import compress_payload
from celery.backends.redis import RedisBackend

from ....batchers import BatchFailed, Outcome
from ....producer import private
from ....producer.codec.serializer import encode_by
from ... import tuning
from ...broker import ChordPart, ResultRetention, Settlement
from ..wire.request import FastRequest
from .encode_result import EncodedValue, encode_part, encode_success


class OneStep:
    """Makes settlements of successes, for one backend of Celery's own kind, at the broker's server."""

    def __init__(self, app: Celery, backend: RedisBackend) -> None:
        self._app = app
        self._backend = backend
        #: Whether the settle script keeps parts of chords as this backend does.
        self.takes_parts = private.keeps_chord_parts_as_known(backend)
        self._key_prefix: str = backend.get_key_for_task("-").decode()[:-1]
        self._group_prefix: str = backend.get_key_for_group("-").decode()[:-1]
        in_order, group_expires_s = private.chord_retention(backend)
        #: Where the results go, and for how long.
        self.retention = ResultRetention(
            db=int(backend.connparams.get("db") or 0),
            expires_s=int(backend.expires or 0),
            chord_in_order=in_order,
            chord_expires_s=int(backend.chord_expires or 0),
            group_expires_s=group_expires_s,
        )

    def encode(self, successes: Sequence[Outcome]) -> list[Settlement]:
        """Return a settlement for each success that this way can settle.

        An outcome whose value cannot be encoded gets an error. A part of a chord may be for Celery to count.
        """
        done_at, backend = self._app.now().isoformat(), self._backend
        settlements = []
        for outcome in successes:
            request: FastRequest = outcome.job.reply
            if outcome.error is not None or (request.in_chord and not self.takes_parts):
                continue
            try:
                value = encode_by(backend.serializer, backend.prepare_value(outcome.value))
                settlements.append(self._settlement(request, value, done_at))
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
        if error := too_large(len(payload)):
            raise error
        return payload


def too_large(size: int) -> BatchFailed | None:
    """Return the error of a result of `size` bytes; None if Redis takes that many."""
    if size <= tuning.MAX_RESULT_BYTES:
        return None
    return BatchFailed(
        f"The result is {size} bytes, but Redis takes {tuning.MAX_RESULT_BYTES} at most. Return less, or store the "
        "result elsewhere and return its address."
    )
