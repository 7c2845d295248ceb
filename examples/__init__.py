"""Examples of models. Start one with `celery -A examples.embedding worker`."""
