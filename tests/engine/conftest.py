"""Engines that are gone when their test is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from batchery.configs import WorkerOptions
from batchery.worker.engine import Engine, EngineState

from tests.support.fakes import DEADLINE_S, FakeModel, FakePorts, Jobs, StartEngine, engine_threads, wait_until_gone


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def ports() -> FakePorts:
    return FakePorts()


@pytest.fixture
def start(ports: FakePorts) -> Iterator[StartEngine]:
    """`start(model, ...)`: an engine that serves these models, drained when the test is over."""
    with ExitStack() as stack:

        def start_one(*models: FakeModel, options: WorkerOptions | None = None, **more: Any) -> Engine:
            state = EngineState({model.name: model for model in models}, options or WorkerOptions(), **more)
            engine = Engine(state, ports, ports)
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
