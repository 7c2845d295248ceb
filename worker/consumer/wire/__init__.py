"""What stands in a message: decoded, decompressed, and shown to Celery as its own messages and requests."""
