"""The embedding model as a task of celery-batches, with first-come batches of 32 that are padded to the longest."""

from __future__ import annotations

import os
from collections.abc import Sequence

from celery import Celery
from celery_batches import Batches, SimpleRequest

from batchery import PadBatcher
from examples import minilm
from examples.embedding_stock import model

app = Celery("batches", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=256)
BATCHER = PadBatcher(padding={"input_ids": 0, "attention_mask": 0})


@app.task(name="embed", base=Batches, flush_every=32, flush_interval=0.1)
def embed(requests: Sequence[SimpleRequest]) -> None:
    tokenizer, encoder, device = model()
    inputs, _ = BATCHER.batch([minilm.tokenize(tokenizer, request.args[0]) for request in requests])
    vectors = minilm.embed(encoder, {name: rows.to(device) for name, rows in inputs.items()})
    for request, vector in zip(requests, vectors.tolist(), strict=True):
        app.backend.mark_as_done(request.id, vector, request=request)
