"""The broker's side: claims, leases, settling. Redis, no Celery: messages are bytes here."""

from .client import connect
from .doorbell import Doorbell
from .keys import Queue
from .leases import Claim, Leases, Settlement

__all__ = ["Claim", "Doorbell", "Leases", "Queue", "Settlement", "connect"]
