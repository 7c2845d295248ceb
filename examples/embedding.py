"""Sentence embeddings. Start `celery -A examples.embedding worker`; call `embed.delay("some text").get()`."""

import os
from typing import Any

from celery import Celery

from batchery import BatchTask, PadBatcher, setup

from . import minilm

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

app = Celery("search", broker=REDIS_URL, backend=REDIS_URL)
setup(app)


class Embed(BatchTask):
    name = "embed"
    batcher = PadBatcher(padding={"input_ids": 0, "attention_mask": 0})
    max_batch_size = 64
    examples = ("token " * minilm.MAX_LENGTH,)  # measured at start, whole and cropped: what batches cost here

    def load(self, device: str) -> None:  # once, in the worker
        self.tokenizer, self.model = minilm.load(device)

    def preprocess(self, text: str) -> Any:  # one text, before it meets a batch
        return minilm.tokenize(self.tokenizer, text)

    def predict(self, batch: Any) -> Any:  # one forward pass: tensors of shape (texts, longest) in, (texts, 384) out
        return minilm.embed(self.model, batch)


embed = app.register_task(Embed())
