"""The fast path: ordinary calls are claimed, decoded, settled and announced in bulk, without Celery's objects."""
