"""Who may work: every worker that joins a scheduler is told the work and asked what it is, also in the middle of a run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovrs.engine import workers
from ovrs.errors import told
from ovrs.provenance import canonical
from ovrs.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovrs.engine.workers import Introduction

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often the scheduler is asked who is there."""
FIRST_SECONDS = 20.0
"""So long after the first worker answered, the others of the beginning are waited for: the most common kind is taken."""
_TRIES = 5
"""So often a worker is asked that did not answer."""


@dataclass(frozen=True)
class Present:
    """The workers that the scheduler names now, with their threads."""

    threads: dict[str, int]


@dataclass(frozen=True)
class Joined:
    """A worker answered."""

    address: str
    introduction: Introduction


@dataclass(frozen=True)
class Gone:
    """The scheduler does not answer."""

    error: BaseException


class Watch:
    """Runs on the client's event loop; tells `tell` who is present and what each new worker says of itself."""

    def __init__(self, client: Any, token: str, content: bytes, tell: Callable[[Any], None]) -> None:
        self._client, self._token, self._content, self._tell = client, token, content, tell
        self._asked: dict[str, int] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._stopped = False

    def start(self) -> None:
        """Begin to look for workers."""
        self._client.loop.add_callback(self._begin)

    def stop(self) -> None:
        """Look for no more workers."""
        self._stopped = True

    def _begin(self) -> None:
        self._keep(asyncio.create_task(self._look()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _look(self) -> None:
        while not self._stopped:
            try:
                threads = dict(await self._client.scheduler.ncores(workers=None))
            except (OSError, RuntimeError, AttributeError) as error:  # also of a client that is being closed
                if not self._stopped:
                    self._tell(Gone(error))
                return
            self._tell(Present(threads))
            for address in self._asked.keys() - threads.keys():
                del self._asked[address]
            for address in threads.keys() - self._asked.keys():
                self._asked[address] = 0
                self._keep(asyncio.create_task(self._ask(address)))
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask(self, address: str) -> None:
        """Ask one worker; one that does not answer is asked again, unless it left."""
        found: Any = None
        while not self._stopped and address in self._asked and self._asked[address] < _TRIES:
            self._asked[address] += 1
            try:
                answers = await self._client.run(
                    workers.join, self._token, self._content, workers=[address], on_error="return"
                )
            except (OSError, RuntimeError) as error:
                answers = {address: error}
            found = answers.get(address, OSError("it left"))
            if not isinstance(found, OSError):
                break
            await asyncio.sleep(LOOK_SECONDS)
        if self._stopped or address not in self._asked:
            return
        if not isinstance(found, workers.Introduction):
            reason = f"{type(found).__name__}: {told(found)}" if isinstance(found, BaseException) else repr(found)
            found = workers.Introduction(address, "", fault=redacted(reason))
        self._tell(Joined(address, found))


class Door:
    """Decides who is admitted. Holds what the scheduler last said of its workers.

    Args:
        wanted: What `Work.prepare` must say, as far as it is known.
        mixed: Whether workers that differ are admitted, too.
        admitted: Called for every different answer that was accepted.
        open_to_all: Whether nobody is refused for what it is: processes that this one started.
    """

    def __init__(
        self,
        wanted: dict[str, str],
        *,
        mixed: bool,
        admitted: Callable[[dict[str, str]], None],
        open_to_all: bool = False,
    ) -> None:
        self.wanted, self.mixed, self.open_to_all = wanted, mixed, open_to_all
        self.threads: dict[str, int] = {}
        self.has_looked = False
        """Whether the scheduler has said who is there."""
        self.inside: set[str] = set()
        self.left_out: dict[str, str] = {}
        """Sentences on workers that are left out, by address."""
        self.names: dict[str, str] = {}
        self._tell, self._told = admitted, set[str]()
        self._waiting: dict[str, Introduction] = {}
        self._first_answer: float | None = None
        self._begun = False

    @property
    def is_undecided(self) -> bool:
        """Whether somebody is present who is neither inside nor left out."""
        return bool(self.threads.keys() - self.inside - self.left_out.keys())

    @property
    def slots(self) -> int:
        """Threads of the workers that are inside."""
        return sum(self.threads[a] for a in self.inside)

    def present(self, threads: dict[str, int]) -> None:
        """Take note of who is present, by address, with the threads of each."""
        self.threads, self.has_looked = threads, True
        self.inside &= threads.keys()
        for address in self.left_out.keys() - threads.keys():
            del self.left_out[address]
        for address in self._waiting.keys() - threads.keys():
            del self._waiting[address]
        self.decide()

    def joined(self, address: str, introduction: Introduction) -> None:
        """Take note of what a worker says of itself; those that are gone are passed over."""
        if address not in self.threads:
            return
        self._first_answer = self._first_answer or time.monotonic()
        self.names[address] = introduction.who
        if introduction.fault:
            self.leave_out(address, introduction.fault)
        else:
            self._waiting[address] = introduction
        self.decide()

    def decide(self) -> None:
        """Admit or leave out those who answered; at the beginning only when all have, or after `FIRST_SECONDS`."""
        if not self._waiting:
            return
        if not self._begun:
            silent = self.threads.keys() - self._waiting.keys() - self.left_out.keys()
            if silent and time.monotonic() - (self._first_answer or 0.0) < FIRST_SECONDS:
                return
            self._begun = True
            self._take_the_most_common()
        while self._waiting:
            address, introduction = self._waiting.popitem()
            self._admit(address, introduction)

    def _take_the_most_common(self) -> None:
        fitting = [i.facts for i in self._waiting.values() if not self._differences(i.facts)]
        if fitting and not self.mixed:
            kinds = Counter(canonical(facts) for facts in fitting)
            chosen = max(sorted(kinds), key=lambda kind: kinds[kind])
            self.wanted = next(f for f in fitting if canonical(f) == chosen) | self.wanted

    def _differences(self, facts: dict[str, str]) -> list[str]:
        return [f"{k} {facts[k]} instead of {v}" for k, v in sorted(self.wanted.items()) if facts.get(k, v) != v]

    def _admit(self, address: str, introduction: Introduction) -> None:
        different = self._differences(introduction.facts)
        if different and not (self.mixed or self.open_to_all):
            self.leave_out(address, f"it has {', '.join(different)} (run.allow_mixed takes it all the same)")
            return
        if different:
            log.warning("Dask worker %s has %s, and is allowed", introduction.who, ", ".join(different))
        else:
            self.wanted = introduction.facts | self.wanted
        kind = canonical(introduction.facts)
        if kind not in self._told:
            self._told.add(kind)
            self._tell(introduction.facts)
        self.inside.add(address)

    def leave_out(self, address: str, reason: str) -> None:
        """Give a worker no more blocks, and say so once."""
        self.inside.discard(address)
        who = self.names.get(address, address)
        if address not in self.left_out:
            log.warning("Dask worker %s is left out: %s", who, reason)
        self.left_out[address] = f"{who}: {reason}"
