"""Everything with side effects, in three rooms: `engine`, `broker` and `consumer` (Celery's side)."""

from .consumer import setup
from .engine import Host

__all__ = ["Host", "setup"]
