"""The fast path: fast calls are claimed, decoded, settled and announced in bulk, without Celery's own objects."""
