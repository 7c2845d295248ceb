"""What travels: kombu's messages decoded, decompressed, and seen as Celery's requests."""
