"""What user code works on, so that it is known when it hangs, or when it ends the process."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter

from ...batchers import Job

_redelivered = attrgetter("redelivered")


class UserCode:
    """All user code runs within `user_code`. Any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        #: What user code works on, and since when, by thread.
        self._working: dict[int, tuple[Sequence[Job], float]] = {}
        #: Whether a redelivered job was ever taken in, and `ResultSink.working`, which is told of such jobs.
        self.saw_redelivered = False
        self.on_work: Callable[..., None] = _ignore

    def look_at(self, jobs: Sequence[Job]) -> None:
        """Note whether one of these jobs was redelivered: without one, nobody looks at single jobs later."""
        self.saw_redelivered = self.saw_redelivered or any(map(_redelivered, jobs))

    @contextmanager
    def user_code(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Watch over user code that works on jobs of one task: preparing, collating, running or postprocessing them."""
        me = threading.get_ident()
        self._working[me] = jobs, self.clock()
        on_work = self.on_work if self.saw_redelivered and any(map(_redelivered, jobs)) else _ignore
        on_work(jobs, begins=True)
        try:
            yield
        finally:
            del self._working[me]
            on_work(jobs, begins=False)


def _ignore(jobs: Sequence[Job], *, begins: bool) -> None:
    pass
