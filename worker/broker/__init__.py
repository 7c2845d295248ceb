"""The broker's side: claims, leases, settling. Redis, no Celery: messages are bytes here."""

from .client import connect
from .doorbell import Doorbell
from .keys import Queue
from .leases import ChordPart, Claim, Keep, Leases, Settled, Settlement

__all__ = ["ChordPart", "Claim", "Doorbell", "Keep", "Leases", "Queue", "Settled", "Settlement", "connect"]
