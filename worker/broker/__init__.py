"""The broker's side: claims, leases, settling. Redis, no Celery: messages are bytes here."""

from .claims import ChordPart, Claim, HeldAs, ResultRetention, Settled, Settlement
from .client import connect
from .dead_letters import DeadLetter, DeadLetters, LetterLimits
from .keys import Queue
from .leases import Leases
from .running_note import RunningNote
from .wakeup import ArrivalWatcher

__all__ = [
    "ArrivalWatcher",
    "ChordPart",
    "Claim",
    "DeadLetter",
    "DeadLetters",
    "HeldAs",
    "Leases",
    "LetterLimits",
    "Queue",
    "ResultRetention",
    "RunningNote",
    "Settled",
    "Settlement",
    "connect",
]
