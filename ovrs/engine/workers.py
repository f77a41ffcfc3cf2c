"""What happens inside a Dask worker: it learns a piece of work once, says what it is, and computes items by name.

The work itself travels once to each worker, in `join`. Items are then small, and the same function serves all of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ovrs.errors import told
from ovrs.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

INTRODUCTION_SECONDS = 120.0
"""How long an item waits in a worker that does not know its work yet."""
LOCAL_WORKER = "OVRS_LOCAL_WORKER"
"""Set in the environment of local workers: which one of them a process is, from 0."""
_KEPT = 32
"""Pieces of work that a worker remembers: runs of several clients may be under way."""


class Died(Exception):  # noqa: N818
    """The workers that an item was given to died."""


class Work(Generic[Item, Result]):
    """What an executor applies to items. Picklable for Dask."""

    def __call__(self, item: Item) -> Result:
        """Compute the result of one item, in a worker."""
        raise NotImplementedError

    def label(self, item: Item) -> tuple[str, str]:  # noqa: ARG002
        """Short names of the work and of the item, for people; hold no address and no hyphen."""
        return type(self).__name__, ""

    def prepare(self) -> dict[str, str]:
        """Make this process ready, and say what it is in words that workers of one run must share.

        Raises:
            Exception: This process cannot do the work; the message is the reason.
        """
        return {}

    def check_here(self) -> None:
        """Hear in the first process that another process cannot do the work. An error here ends everything."""

    def wanted(self) -> dict[str, str]:
        """Return the answers that `prepare` must give, as far as they are known before a worker joins."""
        return {}

    def admitted(self, facts: dict[str, str]) -> None:
        """Hear in the first process every different answer of `prepare` that was accepted."""

    def doubts(self, result: Result) -> bool:  # noqa: ARG002
        """Whether a result looks as if the process, and not the item, were at fault."""
        return False

    def parts(self, item: Item) -> list[Item]:
        """Divides an item that killed its workers again and again; each part is then tried alone."""
        return [item]

    def lost(self, item: Item, error: Exception) -> Result:  # noqa: ARG002
        """Return, in the first process, the result of an item that no worker computed. An error here ends everything."""
        raise error


class Plain(Work[Item, Result]):
    """A function as work."""

    def __init__(
        self,
        function: Callable[[Item], Result],
        parts: Callable[[Item], list[Item]] | None = None,
        lost: Callable[[Item, Exception], Result] | None = None,
    ) -> None:
        self.function, self._parts, self._lost = function, parts, lost

    def __call__(self, item: Item) -> Result:
        """Apply the function."""
        return self.function(item)

    def label(self, item: Item) -> tuple[str, str]:  # noqa: ARG002
        """Return the function's name."""
        return getattr(self.function, "__name__", None) or type(self.function).__name__, ""

    def parts(self, item: Item) -> list[Item]:
        """Divide an item by the function that was given, if any."""
        return self._parts(item) if self._parts else [item]

    def lost(self, item: Item, error: Exception) -> Result:
        """Return what the function for lost items gives; without one, raise the error."""
        if self._lost is None:
            raise error
        return self._lost(item, error)

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "_parts": None, "_lost": None}  # only the first process calls these


@dataclass(frozen=True)
class Introduction:
    """What a worker says of itself."""

    name: str
    host: str
    facts: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    """Why this process cannot do the work; empty when it can."""

    @property
    def who(self) -> str:
        """Return name and host, for people."""
        return f"{self.name} on {self.host}"


@dataclass(frozen=True)
class Answer:
    """What came of an item in a worker. Errors are values here, so they are never taken for those of the connection."""

    worker: str
    """Address."""
    result: Any = None
    error: Exception | None = None
    doubtful: bool = False
    """Whether another worker should try, too."""
    unfit: str = ""
    """Why this worker cannot do the work at all; empty when it can."""


class _Known:
    """A piece of work in this process."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.work: Work[Any, Any] | None = None
        self.facts: dict[str, str] = {}
        self.fault = ""

    def load(self, content: bytes) -> None:
        try:
            self.work = pickle.loads(content)
            self.facts = self.work.prepare()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is the reason why this worker is left out)
            self.fault = _reason(error)
        self.ready.set()


_known: OrderedDict[str, _Known] = OrderedDict()
_lock = threading.Lock()
_arrived = threading.Condition(_lock)


async def join(token: str, content: bytes, dask_worker: Any = None) -> Introduction:
    """Learn the pickled work `content` under `token`. Never fails: a fault is part of the answer."""
    known = _Known()
    with _arrived:
        _known[token] = known
        while len(_known) > _KEPT:
            _known.popitem(last=False)
        _arrived.notify_all()
    if LOCAL_WORKER in os.environ:
        os.environ[LOCAL_WORKER] = str(dask_worker.name)
    await asyncio.to_thread(known.load, content)
    return Introduction(str(dask_worker.name), f"{socket.gethostname()} ({os.getpid()})", known.facts, known.fault)


def call(token: str, item: Any) -> Answer:
    """Apply the work that is known by `token`; the task of every item."""
    from distributed import get_worker

    where = get_worker().address
    known = _wait_for(token)
    if known is None:
        return Answer(where, unfit="it was not told of this run in time")
    known.ready.wait()  # a model may take minutes to load
    if known.fault or known.work is None:
        return Answer(where, unfit=known.fault)
    try:
        result = known.work(item)
    except Exception as error:  # noqa: BLE001  (an answer, for whoever asked)
        return Answer(where, error=_portable(error), unfit=_fault_now(known.work))
    if not known.work.doubts(result):
        return Answer(where, result)
    return Answer(where, result, doubtful=True, unfit=_fault_now(known.work))


def _wait_for(token: str) -> _Known | None:
    with _arrived:
        _arrived.wait_for(lambda: token in _known, INTRODUCTION_SECONDS)
        found = _known.get(token)
        if found is not None:
            _known.move_to_end(token)
        return found


def _fault_now(work: Work[Any, Any]) -> str:
    """Why this process cannot do the work any more, such as a folder that vanished; empty when it can."""
    try:
        work.prepare()
    except Exception as error:  # noqa: BLE001  (as in `_Known.load`)
        return _reason(error)
    return ""


def _reason(error: BaseException) -> str:
    return redacted(f"{type(error).__name__}: {told(error)}")


def _portable(error: Exception) -> Exception:
    """Return the error, if it can be sent to the first process; else an error with its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (classes of libraries fail in many ways)
        return RuntimeError(_reason(error))
    return error


def is_cancelled() -> bool:
    """Whether the item that this thread computes for Dask is wanted no more: its client left, or ended the run."""
    if "distributed" not in sys.modules:
        return False
    from distributed import get_worker

    try:
        worker = get_worker()
        key = worker.get_current_task()
    except (ValueError, KeyError, AttributeError):  # no thread of a worker
        return False
    task = worker.state.tasks.get(key)
    return task is None or task.state == "cancelled"
