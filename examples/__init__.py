"""Models that run: `celery -A examples.embedding worker`."""
