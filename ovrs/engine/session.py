"""One connection to a Dask scheduler: pieces of work go out, answers come in, workers join and leave meanwhile."""

from __future__ import annotations

import logging
import queue
import time
import uuid
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ovrs.engine import door as doors
from ovrs.engine import workers
from ovrs.errors import OvrsError, WorkersUnfitError, told

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from ovrs.engine.workers import Answer, Work
    from ovrs.options import RunOptions

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 2
"""Items submitted ahead of each thread of a worker: enough to keep it busy, few enough to bound the scheduler's load."""
UNFIT_SECONDS = 30.0
"""So long another worker may join where all that are there were left out."""
SILENT_SECONDS = 60.0
"""How often it is said that no worker is there."""
ANSWER_SECONDS = 30.0
"""So long an answer may take from its worker; it is a few hundred bytes."""
TRIES = 3
"""So often an item is tried that ended with an error outside the work itself."""


class Disconnected(Exception):  # noqa: N818
    """The client lost its scheduler."""


@dataclass
class _Piece(Generic[Item]):
    """An item on its way, with what happened to it so far."""

    item: Item
    alone: bool = False
    """Whether it is computed with no other piece beside it."""
    deaths: int = 0
    """How often all workers that it was given to died."""
    failures: int = 0


class Backlog(Generic[Item, Result]):
    """Items that are not done. They outlive the scheduler, and are then given to the next one."""

    def __init__(self, items: Iterator[Item], work: Work[Item, Result]) -> None:
        self.work = work
        self._items, self._numbers = items, count()
        self.pieces: dict[int, _Piece[Item]] = {}
        self._again: list[int] = []
        self._apart: list[int] = []
        self.is_over = False

    def next(self) -> int | None:
        """Return the number of a piece to submit; None when no piece is left but those to be tried alone."""
        if self._again:
            return self._again.pop(0)
        for item in self._items if not self.is_over else ():
            return self._add(_Piece(item))
        self.is_over = True
        return None

    def next_alone(self) -> int | None:
        """Return the number of the next piece to be tried alone; None when no such piece is left."""
        return self._apart.pop(0) if self._apart else None

    def put_back(self, number: int) -> None:
        """Let a piece be the next one submitted of its kind."""
        (self._apart if self.pieces[number].alone else self._again).insert(0, number)

    def take_back(self) -> None:
        """Put back what is under way: its scheduler went away."""
        for number in sorted(self.pieces, reverse=True):
            if number not in self._again and number not in self._apart:
                self.put_back(number)

    def divide(self, number: int) -> None:
        """Put an item's parts in its place, each to be tried alone."""
        item = self.pieces.pop(number).item
        self._apart += [self._add(_Piece(part, alone=True)) for part in self.work.parts(item)]

    def _add(self, piece: _Piece[Item]) -> int:
        number = next(self._numbers)
        self.pieces[number] = piece
        return number


@dataclass(frozen=True, eq=False)
class _Done:
    """A future came to its end, whatever that is."""

    number: int
    future: Any


class Session(Generic[Item, Result]):
    """One connection to a scheduler: keeps a bounded number of pieces with it."""

    def __init__(
        self,
        client: Any,
        backlog: Backlog[Item, Result],
        options: RunOptions,
        stop: threading.Event | None,
        *,
        local: bool,
    ) -> None:
        import dask
        from distributed.protocol import pickle

        self.client, self.backlog, self.options, self.stop, self.local = client, backlog, options, stop, local
        self.work, self.token = backlog.work, uuid.uuid4().hex[:8]
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.door = doors.Door(
            self.work.wanted(), mixed=options.allow_mixed, admitted=self.work.admitted, open_to_all=local
        )
        self.watch = doors.Watch(client, self.token, pickle.dumps(self.work), self.events.put)
        self.running: dict[int, Any] = {}
        self.found: list[Result] = []
        self.avoided: dict[int, str] = {}
        """Workers that failed a piece which another one tries."""
        self.given: dict[int, frozenset[str]] = {}
        """Addresses of the workers that a piece may run on; a piece that any may take is not in it."""
        self.deaths = int(dask.config.get("distributed.scheduler.allowed-failures"))
        self.silent_until = time.monotonic() + SILENT_SECONDS
        self.unfit_since: float | None = None

    def results(self) -> Iterator[Result]:
        """Results as they come; closing it cancels what is under way."""
        self.backlog.take_back()
        self.watch.start()
        try:
            while self._submit() and not (self.stop is not None and self.stop.is_set()):
                self._take_in()
                self._require_workers()
                while self.found:
                    yield self.found.pop(0)
        finally:
            self.watch.stop()
            for future in self.running.values():
                future.cancel()

    def _take_in(self) -> None:
        """Wait a moment for one event and act on it."""
        try:
            event = self.events.get(timeout=doors.LOOK_SECONDS)
        except queue.Empty:
            return
        if not isinstance(event, _Done):
            self._heard(event)
        elif self.running.get(event.number) is event.future:
            del self.running[event.number]
            self._ended(event.number, event.future)

    # ---- submitting

    def _submit(self) -> bool:
        """Submit as many pieces as the workers can take; whether anything is left to wait for."""
        limit = max(2, IN_FLIGHT_PER_WORKER * self.door.slots)
        while len(self.running) < limit and self._may_submit:
            number = self.backlog.next()
            if number is None:
                break
            self._give(number)
        if not self.running and self._may_submit:
            number = self.backlog.next_alone()
            if number is not None:  # one at a time: it may only have waited beside the one that killed the workers
                self._give(number)
        return bool(self.running or self.backlog.pieces) or not self.backlog.is_over

    @property
    def _may_submit(self) -> bool:
        """Whether somebody may take a piece. To an empty scheduler a few are given, so that it asks for workers."""
        door = self.door
        return self.local or bool(door.inside) or (door.has_looked and not door.threads)

    def _give(self, number: int) -> None:
        piece = self.backlog.pieces[number]
        inside = frozenset() if self.local else frozenset(self.door.inside)
        others = inside - {self.avoided.pop(number, "")}
        inside = others or inside
        group, name = self.work.label(piece.item)
        future = self.client.submit(
            workers.call,
            self.token,
            piece.item,
            key=(f"{group}-{self.token}.{number}.{uuid.uuid4().hex[:4]}", f"{group} {name}"),
            pure=False,
            resources=self.options.resources or None,
            workers=sorted(inside) or None,
        )
        self.running[number] = future
        self.given.pop(number, None)
        if inside:
            self.given[number] = inside
        future.add_done_callback(lambda done: self.events.put(_Done(number, done)))

    # ---- what happened

    def _heard(self, event: object) -> None:
        if isinstance(event, doors.Gone):
            raise Disconnected(f"{type(event.error).__name__}: {told(event.error)}") from event.error
        if isinstance(event, doors.Joined):
            self.door.joined(event.address, event.introduction)
        if isinstance(event, doors.Present):
            self.door.present(event.threads)
            self._take_back_stranded()

    def _take_back_stranded(self) -> None:
        """Take back what only workers have that died or were left out: their successors have other addresses."""
        for number in [n for n, given in self.given.items() if n in self.running and not given & self.door.inside]:
            self.running.pop(number).cancel()
            if self.given.pop(number) & self.door.threads.keys():
                self.backlog.put_back(number)
            else:
                self._died(number, workers.Died("every worker that it was given to died"))

    def _died(self, number: int, error: Exception) -> None:
        """Give a piece whose workers died to others; at last divide it and try its parts alone."""
        piece = self.backlog.pieces[number]
        piece.deaths += 1
        if piece.deaths <= self.deaths and isinstance(error, workers.Died):
            self.backlog.put_back(number)
        elif piece.alone:
            self._lost(number, error)
        else:
            self.backlog.divide(number)

    def _lost(self, number: int, error: Exception) -> None:
        item = self.backlog.pieces.pop(number).item
        self.found.append(self.work.lost(item, error))

    def _ended(self, number: int, future: Any) -> None:
        from distributed.scheduler import KilledWorker

        status = future.status
        if status == "cancelled":
            raise Disconnected("what was under way was cancelled")
        try:
            answer = future.result(timeout=ANSWER_SECONDS) if status == "finished" else None
            error = future.exception() if status == "error" else None
        except (KilledWorker, TimeoutError) as problem:  # its worker died with the answer, or died again meanwhile
            answer, error = None, problem if isinstance(problem, KilledWorker) else None
        except Exception as problem:  # the answer itself is no error, so this one is of the connection
            raise Disconnected(f"{type(problem).__name__}: {told(problem)}") from problem
        if isinstance(error, KilledWorker):
            self._died(number, error)
        elif error is not None:  # before the work itself, such as a worker without this package
            self._failed(number, error)
        elif answer is None:  # lost with its worker
            future.cancel()
            self.backlog.put_back(number)
        else:
            self._answered(number, answer)

    def _answered(self, number: int, answer: Answer) -> None:
        piece = self.backlog.pieces[number]
        if answer.unfit:
            self.work.check_here()  # what nobody sees is no fault of a worker
            if self.local:
                self._lost(number, WorkersUnfitError(f"no local Dask worker can compute this run: {answer.unfit}"))
                return
            self.door.leave_out(answer.worker, answer.unfit)
            self.backlog.put_back(number)
        elif answer.error is not None:
            self._failed(number, answer.error)
        elif answer.doubtful and self.door.inside - {answer.worker} and piece.failures == 0 and not self.local:
            piece.failures += 1
            self.backlog.put_back(number)
            self.avoided[number] = answer.worker
        else:
            del self.backlog.pieces[number]
            self.found.append(answer.result)

    def _failed(self, number: int, error: Exception) -> None:
        """Try a piece with an error again where the error may heal; else the work records it."""
        piece = self.backlog.pieces[number]
        piece.failures += 1
        if isinstance(error, OvrsError) or piece.failures >= TRIES:
            self._lost(number, error)
        else:
            self.backlog.put_back(number)

    def _require_workers(self) -> None:
        """Say that nobody is there; end where everybody was left out."""
        door, now = self.door, time.monotonic()
        if door.inside or self.local:
            self.unfit_since, self.silent_until = None, now + SILENT_SECONDS
        elif door.left_out and not door.is_undecided:
            self.unfit_since = self.unfit_since or now
            if now - self.unfit_since >= UNFIT_SECONDS and not self.running:
                self.work.check_here()
                reasons = "; ".join(sorted(door.left_out.values()))
                raise WorkersUnfitError(f"no Dask worker can compute this run: {reasons}; finished blocks are kept")
        elif now > self.silent_until:
            self.silent_until = now + SILENT_SECONDS
            silent = ", ".join(sorted(door.threads.keys() - door.left_out.keys()))
            what = f"Dask workers have not answered yet: {silent}" if silent else "no Dask worker is there"
            log.warning("%s; waiting", what)
