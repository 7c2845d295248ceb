"""A task that embeds sentences.

Start a worker with `celery -A examples.embedding worker`, and call `embed.delay("some text").get()`.
"""

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
    examples = ("token " * minilm.MAX_LENGTH,)  # run whole and cropped at start, to measure costs

    def load(self, device: str) -> None:  # runs once, in the worker
        self.tokenizer, self.model = minilm.load(device)

    def preprocess(self, text: str) -> Any:  # gets one text, before it is in a batch
        return minilm.tokenize(self.tokenizer, text)

    def predict(self, batch: Any) -> Any:  # gets tensors of shape (texts, longest), returns one of (texts, 384)
        return minilm.embed(self.model, batch)


embed = app.register_task(Embed())
