"""The scripts by which workers find the jobs that end them, and keep what is given up."""

from collections.abc import Sequence
from typing import Any

import msgspec

from .claims import Claim
from .dead_letters import DeadLetter, LetterLimits


class GivingUpScripts:
    """Two of the Lua scripts, each as a method. Any thread."""

    def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        raise NotImplementedError

    def may_run_suspect(self, claim: Claim) -> bool:
        """Return whether a suspect may run, because no other one of its queue does."""
        return bool(self._run("suspect", [claim.queue.unacked, claim.queue.suspect], [claim.tag]))

    def bury(self, claim: Claim, letter: DeadLetter, limits: LetterLimits) -> bool:
        """Keep a claim's message as a dead letter; return False if its lease was lost."""
        queue = claim.queue
        keys = [queue.unacked, queue.dead, queue.dead_messages, queue.dead_index]
        letter.queue, letter.priority = queue.name, int(claim.tag.rpartition(".")[2])
        known = msgspec.json.encode(letter)
        return bool(self._run("bury", keys, [claim.tag, len(queue.envelope_end), letter.id, known, *limits]))
