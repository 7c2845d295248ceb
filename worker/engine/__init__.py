"""The engine and the in-process host: threads that move jobs through models. No Celery, no Redis."""

from .engine import Engine
from .front import Front, Room
from .host import Host
from .model import Model
from .ports import Capacity, Intake, JobSource, ResultSink

__all__ = ["Capacity", "Engine", "Front", "Host", "Intake", "JobSource", "Model", "ResultSink", "Room"]
