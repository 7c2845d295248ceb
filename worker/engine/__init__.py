"""The engine and the in-process host: threads that move jobs through models. No Celery, no Redis."""

from .host import Host
from .lifecycle import Engine
from .model import Model
from .ports import Capacity, JobSource, ResultSink
from .state import EngineState

__all__ = ["Capacity", "Engine", "EngineState", "Host", "JobSource", "Model", "ResultSink"]
