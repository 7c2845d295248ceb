"""The broker's side: claims, leases, settling. Redis, no Celery: messages are bytes here."""

from .client import connect
from .held import Claim
from .keys import Queue
from .leases import Leases
from .settling import ChordPart, ResultRetention, Settled, Settlement
from .wakeup import ArrivalWatcher

__all__ = [
    "ArrivalWatcher",
    "ChordPart",
    "Claim",
    "Leases",
    "Queue",
    "ResultRetention",
    "Settled",
    "Settlement",
    "connect",
]
