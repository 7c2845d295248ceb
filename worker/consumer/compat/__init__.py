"""The bridge to Celery's own machinery: its message handler, its tracer, its event loop and its worker state."""
