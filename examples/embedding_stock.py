"""The model of `examples.embedding` as a plain Celery task, with one forward pass for each call, as a comparison."""

import os
from functools import cache
from typing import Any

from celery import Celery

from . import minilm

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

app = Celery("search", broker=REDIS_URL, backend=REDIS_URL)
app.conf.task_acks_late = True  # as safe as Batchery: the calls of a killed worker run again


@cache
def model() -> tuple[Any, Any, str]:  # the first call in each process loads the model
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return *minilm.load(device), device


@app.task(name="embed")
def embed(text: str) -> list[float]:
    tokenizer, encoder, device = model()
    item = minilm.tokenize(tokenizer, text)
    vectors = minilm.embed(encoder, {name: row.unsqueeze(0).to(device) for name, row in item.items()})
    vector: list[float] = vectors[0].tolist()
    return vector
