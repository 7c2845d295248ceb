"""A service that calls `embed` by its name, and needs only Celery. Start it with `python -m examples.calls`."""

import os
import time

from celery import Celery, group

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

TEXTS = [f"{count} {thing} in the {place}" for count in range(10) for thing in ("cats", "birds") for place in "abcde"]


def main() -> None:
    app = Celery("calls", broker=REDIS_URL, backend=REDIS_URL)
    began = time.perf_counter()
    vectors = group(app.signature("embed", args=[text]) for text in TEXTS).apply_async().get(timeout=300)
    print(f"{len(vectors)} texts, {len(vectors[0])} numbers for each, {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
