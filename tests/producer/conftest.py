"""Apps that publish into memory."""

import celery._state
import pytest
from celery import Celery


@pytest.fixture(autouse=True)
def _no_task_is_shared_with_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery gives a task to every app of the process, unless it is told otherwise."""
    monkeypatch.setattr(celery._state, "_on_app_finalizers", set())
    monkeypatch.setattr(celery._state, "_apps", type(celery._state._apps)())


@pytest.fixture
def app() -> Celery:
    """An app without a server; its tasks can be defined, called and published."""
    return Celery("tests", broker="memory://", backend="cache+memory://", set_as_current=False)
