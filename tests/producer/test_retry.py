"""`self.retry` without a worker: as in Celery, a call that nothing retries fails with the error that was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from batchery import BatchFailed, BatchTask, Host


class Shaky(BatchTask):
    """Asks for another try of "bad", for a reason where there is one."""

    name = "shaky"
    max_retries = 2
    reason: Exception | None = KeyError("a reason")
    hook = "predict"

    def _ask(self, hook: str, item: Any) -> Any:
        if hook == self.hook and item == "bad":
            raise self.retry(exc=self.reason, countdown=0)
        return item

    def preprocess(self, item: Any) -> Any:
        return self._ask("preprocess", item)

    def predict(self, items: list[Any]) -> list[Any]:
        if self.hook == "slot":
            return [self.retry(exc=self.reason, throw=False) if item == "bad" else item for item in items]
        return [self._ask("predict", item) for item in items]

    def postprocess(self, item: Any) -> Any:
        return self._ask("postprocess", item)


HOOKS = ["preprocess", "predict", "slot", "postprocess"]


@pytest.fixture
def shaky(app: Celery) -> Callable[..., Shaky]:
    def make(hook: str, reason: Exception | None) -> Shaky:
        task: Shaky = app.register_task(Shaky())
        task.hook, task.reason = hook, reason
        return task

    return make


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("reason", [KeyError("a reason"), None], ids=repr)
def test_a_call_that_nothing_retries_fails(shaky: Callable[..., Shaky], hook: str, reason: Exception | None) -> None:
    task = shaky(hook, reason)
    kind, words = (KeyError, "a reason") if reason else (BatchFailed, "only a Celery worker retries")
    with pytest.raises(kind, match=words):
        task("bad")
    if hook == "predict":
        with pytest.raises(kind, match=words):
            task.run_batch(["good", "bad"])
    else:
        good, bad = task.run_batch(["good", "bad"])
        assert (good, type(bad)) == ("good", kind)
    with Host(task) as host:
        futures = [host.submit(word) for word in ("good", "bad", "fine")]
        assert [futures[0].result(20), futures[2].result(20)] == ["good", "fine"]
        with pytest.raises(kind, match=words):
            futures[1].result(20)


@pytest.mark.parametrize("hook", HOOKS[:2])
def test_an_eager_call_is_retried_as_in_celery(shaky: Callable[..., Shaky], hook: str) -> None:
    result = shaky(hook, KeyError("a reason")).apply(("bad",))
    assert (result.state, repr(result.result)) == ("FAILURE", "KeyError('a reason')")


def test_a_call_that_was_retried_with_other_arguments_keeps_those_that_were_not_given(app: Celery) -> None:
    class Named(BatchTask):
        name = "named"

        def preprocess(self, one: int, two: int = 2, *, three: int = 3) -> Any:
            return one, two, three

        def predict(self, items: list[Any]) -> list[Any]:
            return items

    merge = Named._signature.merge
    assert merge([1], {"two": 5}, None, None) == (None, None)
    assert merge([1], {"two": 5}, [7], {}) == ([7], {})
    assert merge([1], {"two": 5, "three": 6}, [7, 8], None) == ([7, 8], {"three": 6})
    assert merge([1, 2], {"three": 6}, None, {"two": 9}) == ([1, 9], {})
    assert merge([], {}, None, {"one": 9}) == ([], {"one": 9})
