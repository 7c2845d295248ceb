"""Measures the model alone, in a loop over perfectly sorted batches without queue, broker or worker.

`python -m benchmarks.sorted_loop TEXTS.json` prints, as JSON, the seconds from texts to lists of numbers for each of
several batch sizes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchery import PadBatcher
from examples import minilm
from examples.embedding_stock import model

#: The largest (jobs, tokens) of a batch, from sizes that suit a CPU's caches to sizes that fill a GPU.
CUTS = ((8, 10**9), (32, 10**9), (64, 512), (64, 1024), (64, 2048), (64, 4096), (256, 16_384), (256, 65_536))
BATCHER = PadBatcher(padding={"input_ids": 0, "attention_mask": 0})


def main() -> None:
    import torch

    texts = json.loads(Path(sys.argv[1]).read_text())
    model()
    with torch.inference_mode():
        embed(texts[:64], 32, 1024)
        seconds = {f"{size} jobs, {tokens} tokens": _seconds(texts, size, tokens) for size, tokens in CUTS}
    print(json.dumps(seconds))


def _seconds(texts: Sequence[str], size: int, tokens: int) -> float:
    start = time.perf_counter()
    embed(texts, size, tokens)
    return time.perf_counter() - start


def embed(texts: Sequence[str], size: int, tokens: int) -> list[list[float]]:
    tokenizer, encoder, device = model()
    items = [minilm.tokenize(tokenizer, text) for text in texts]
    vectors: list[list[float]] = [[]] * len(texts)
    for indices in cut(list(map(BATCHER.length, items)), size, tokens):
        inputs, _ = BATCHER.batch([items[index] for index in indices])
        rows = minilm.embed(encoder, {name: array.to(device) for name, array in inputs.items()})
        for index, vector in zip(indices, rows.tolist(), strict=True):
            vectors[index] = vector
    return vectors


def cut(lengths: Sequence[int], size: int, tokens: int) -> Iterator[list[int]]:
    """Yield the indices of all texts, shortest first, in batches of at most `size` jobs and `tokens` padded tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == size or (len(batch) + 1) * lengths[index] > tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


if __name__ == "__main__":
    main()
