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
    # On 2 CPU cores, 400 real texts sorted by length: 55/s one by one, 106 with 1,024 tokens a batch, 98 with 2,048,
    # 93 with 4,096, 64 with 16,384. A GPU wants more: start with 16,384 there.
    max_batch_tokens = 1_024

    def load(self, device: str) -> None:  # once, in the worker
        self.tokenizer, self.model = minilm.load(device)

    def preprocess(self, text: str) -> Any:  # one text, before it meets a batch
        return minilm.tokenize(self.tokenizer, text)

    def predict(self, batch: Any) -> Any:  # one forward pass: tensors of shape (texts, longest) in, (texts, 384) out
        return minilm.embed(self.model, batch)


embed = app.register_task(Embed())
