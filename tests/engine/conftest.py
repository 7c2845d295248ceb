"""Engines that are gone when their test is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from batchery.configs import WorkerOptions
from batchery.worker.engine import Engine

from tests.support.fakes import DEADLINE_S, FakeFront, FakeModel, Jobs, StartEngine, engine_threads, wait_until_gone


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def front() -> FakeFront:
    return FakeFront()


@pytest.fixture
def start(front: FakeFront) -> Iterator[StartEngine]:
    """`start(model, ...)`: an engine that serves these models, drained when the test is over."""
    with ExitStack() as stack:

        def start_one(*models: FakeModel, options: WorkerOptions | None = None, **more: Any) -> Engine:
            engine = Engine({model.name: model for model in models}, front, options or WorkerOptions(), **more)
            stack.callback(engine.drain, DEADLINE_S)
            engine.load()
            engine.start()
            return engine

        yield start_one


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_test() -> Iterator[None]:
    assert engine_threads() == []
    yield
    wait_until_gone(*engine_threads())
