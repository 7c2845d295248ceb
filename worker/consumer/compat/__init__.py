"""The bridge to Celery's own machinery: its handler, its tracer, its hub and its acknowledgements."""
