"""Where batches of blocks are computed. Every executor takes a picklable function and items, and yields results as they come.

Nothing here knows rasters or models; nothing elsewhere knows Dask.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from ovrs.engine.allocator import ENVIRONMENT
from ovrs.errors import OptionError, SchedulerLostError, told

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ovrs.options import RunOptions

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 2
"""Items submitted ahead of each worker: enough to keep it busy, few enough to bound memory and scheduler load."""
CONNECT_SECONDS = 10.0
"""How long a scheduler may take to answer the first time."""
PROTOCOLS = ("tcp", "tls", "ucx", "ws", "wss", "inproc")
"""Dask's protocols."""
RECONNECTS = 5
RECONNECT_SECONDS = 30.0
"""How often and how long a lost scheduler is waited for."""


def run(
    options: RunOptions,
    fn: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    warm: Callable[[], object] | None = None,
    parts: Callable[[Item], list[Item]] | None = None,
    lost: Callable[[Item, Exception], Result] | None = None,
    stop: threading.Event | None = None,
) -> Generator[Result]:
    """Apply `fn` to every item with the executor that the options name.

    Closing the iterator ends the work: nothing new is begun, and threads end before `close` returns.

    Args:
        options: Executor, workers, scheduler address and resources.
        fn: Picklable for Dask.
        items: Taken one by one; a million of them never exist at once.
        warm: Called once on every Dask worker before its first item: loads the model.
        parts: Divides an item that killed its Dask workers again and again; each part is then tried alone.
        lost: Gives the result of an item that killed its workers also alone. Without it, that is an error.
        stop: Set for threads when the work ends early, so that `fn` can end within an item.
    """
    if options.executor == "serial":
        return (fn(item) for item in items)
    if options.executor == "threads":
        return run_threads(fn, items, options.workers, stop)
    return run_dask(fn, items, options, warm=warm, parts=parts, lost=lost)


def is_elsewhere(options: RunOptions) -> bool:
    """Whether the blocks are computed by the workers of a standing scheduler, perhaps on other machines."""
    return options.executor == "dask" and options.scheduler is not None


def ask(options: RunOptions, question: Callable[[], Result], *, lost: Callable[[Exception], Exception]) -> Result:
    """The answer of one worker of the scheduler that the options name.

    Args:
        options: Scheduler and resources.
        question: Picklable.
        lost: Gives the error to raise when every worker that was asked died.

    Raises:
        OptionError: No scheduler answers at the address.
        SchedulerLostError: It went away and did not come back.
    """

    def none_answers(_: None, error: Exception) -> Result:
        raise lost(error) from error

    (answer,) = run_dask(partial(_call, question), [None], options, lost=none_answers)
    return answer


def _call(question: Callable[[], Result], _: None) -> Result:
    return question()


def run_threads(
    fn: Callable[[Item], Result], items: Iterable[Item], workers: int, stop: threading.Event | None = None
) -> Generator[Result]:
    """In `workers` threads; at most two items per worker are under way."""
    with ThreadPoolExecutor(workers, thread_name_prefix="ovrs") as pool:
        try:
            yield from _bounded(lambda item: pool.submit(fn, item), iter(items), workers * IN_FLIGHT_PER_WORKER)
        finally:
            if stop is not None:
                stop.set()


def _bounded(submit: Callable[[Item], Future[Result]], items: Iterator[Item], limit: int) -> Iterator[Result]:
    pending = {submit(item) for item in islice(items, limit)}
    try:
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                pending |= {submit(item) for item in islice(items, 1)}
    finally:
        for future in pending:
            future.cancel()


def run_dask(
    fn: Callable[[Item], Result],
    items: Iterable[Item],
    options: RunOptions,
    *,
    warm: Callable[[], object] | None = None,
    parts: Callable[[Item], list[Item]] | None = None,
    lost: Callable[[Item, Exception], Result] | None = None,
) -> Generator[Result]:
    """On a Dask cluster: a standing one at `options.scheduler`, else local processes for the time of the run.

    A worker that dies takes nothing with it: Dask gives its items to others, three times. An item that still seems to
    kill workers is divided, and each part is tried alone. A scheduler that is restarted is waited for, and what was
    under way is submitted again.

    Raises:
        OptionError: No scheduler answers at the address.
        SchedulerLostError: It went away and did not come back.
    """
    cluster: Any = _local_cluster(options) if options.scheduler is None else None
    queue, under_way = iter(items), _UnderWay[Item](parts)
    try:
        for attempt in range(RECONNECTS + 1):
            try:
                client = _connected(cluster, options.scheduler)
                yield from _serve(client, fn, queue, under_way, options, warm, lost)
                return
            except _Failed as failed:
                raise failed.error from failed.error.__cause__
            except _Disconnected as error:
                if cluster is not None or attempt == RECONNECTS:
                    raise SchedulerLostError(
                        f"the Dask scheduler at {options.scheduler or 'this machine'} went away ({error}); finished blocks "
                        "are kept, `ovrs resume` goes on"
                    ) from error
                log.warning("lost the Dask scheduler (%s); waiting for it to come back", error)
                _wait_for(str(options.scheduler))
    finally:
        if cluster is not None:
            cluster.close()


def _local_cluster(options: RunOptions) -> Any:
    import dask
    from distributed import LocalCluster

    before = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    # workers compute in threads that are not their first: see `ovrs.engine.allocator`, also for Dask's own setting
    with dask.config.set({"distributed.nanny.pre-spawn-environ": before | ENVIRONMENT}), _deaf_children():
        return LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.WARNING if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL,
            processes=True,
            resources=options.resources or None,
        )


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes begun inside do not hear Ctrl-C, which a terminal sends to all; the first process ends them in order.

    Threads and processes inherit the signals that are blocked. A Ctrl-C inside is delivered at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start unblocks signals, so it must have happened
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _UnderWay(Generic[Item]):
    """Items that the scheduler has, by number. They outlive the scheduler, and are then given to the next one."""

    def __init__(self, parts: Callable[[Item], list[Item]] | None) -> None:
        self.items: dict[int, Item] = {}
        self._parts, self._numbers = parts, count()

    def add(self, item: Item) -> int:
        number = next(self._numbers)
        self.items[number] = item
        return number

    def divide(self, number: int) -> list[int]:
        """Put an item's parts in its place; returns their numbers."""
        item = self.items.pop(number)
        return [self.add(part) for part in (self._parts(item) if self._parts else [item])]


class _Disconnected(Exception):  # noqa: N818
    """The client lost its scheduler."""


class _Failed(Exception):  # noqa: N818
    """A piece of work ended with an error of the system, such as a full disk; not one of the connection."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def _connected(cluster: Any, address: str | None) -> Any:
    """A client of the cluster, or of the scheduler at `address`."""
    from distributed import Client

    if cluster is None:
        reach(str(address))
    return Client(cluster or address, timeout=f"{CONNECT_SECONDS:.0f}s", set_as_default=False)


def reach(address: str) -> None:
    """Connect to a scheduler and leave, before anything depends on it.

    Raises:
        OptionError: The address is malformed, certificates are missing (TLS), or no scheduler answers in time.
    """
    check_address(address)
    try:
        with ThreadPoolExecutor(1) as apart:  # a thread of its own: the caller may have a loop running
            apart.submit(asyncio.run, _knock(address)).result()
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
        # a server of another kind answers bytes that Dask takes for enormous lengths
        reason = "what answers there is something else" if isinstance(error, MemoryError) else told(error)
        raise OptionError(
            f"no Dask scheduler answers at {address}: {reason}. Start one with `dask scheduler` and `dask worker {address}`"
        ) from error


async def _knock(address: str) -> None:
    """Connect and leave: a client that cannot connect would stay half open and delay the end of the process."""
    from distributed import Security
    from distributed.comm.core import connect

    if not address.startswith("inproc:"):
        comm = await connect(address, timeout=CONNECT_SECONDS, **Security().get_connection_args("client"))
        await comm.close()


def check_address(address: str) -> None:
    """Refuse what no scheduler can have as address, before anything waits for it.

    Raises:
        OptionError: Another protocol than Dask's, no host, no port, or certificates that are not where Dask is told.
    """
    import dask

    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise OptionError(f"run.scheduler {address!r} is no address: {error}; write tcp://host:8786") from error
    if parts.scheme not in PROTOCOLS or not parts.hostname or (port is None and parts.path.count("/") != 2):
        raise OptionError(
            f"run.scheduler {address!r} is no address of a scheduler; write tcp://host:8786 ({', '.join(PROTOCOLS)})"
        )
    settings = [f"distributed.comm.tls.{k}" for k in ("ca-file", "client.cert", "client.key")]
    named = {s: str(dask.config.get(s, None) or "") for s in settings if parts.scheme in ("tls", "wss")}
    absent = [f"{s} ({f or 'not set'})" for s, f in named.items() if "\n" not in f and not Path(f).is_file()]
    if absent:
        raise OptionError(f"run.scheduler {address}: Dask's settings name no file for {', '.join(absent)}")


def _serve(
    client: Any,
    fn: Callable[[Item], Result],
    queue: Iterator[Item],
    under_way: _UnderWay[Item],
    options: RunOptions,
    warm: Callable[[], object] | None,
    lost: Callable[[Item, Exception], Result] | None,
) -> Iterator[Result]:
    """Keep a bounded number of items with the scheduler; `under_way` survives the loss of it."""
    from asyncio import CancelledError as AsyncCancelled
    from concurrent.futures import CancelledError

    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    gone = (FutureCancelledError, CancelledError, AsyncCancelled, CommClosedError, OSError)
    with client:
        try:
            if warm is not None:
                client.register_plugin(_warm_plugin(warm))
            slots = max(1, sum(client.nthreads().values()))
            keys: dict[str, int] = {}
            apart: list[int] = []

            def submit(number: int) -> Any:
                item, resources = under_way.items[number], options.resources or None
                future = client.submit(fn, item, pure=False, retries=2, resources=resources)
                keys[future.key] = number
                return future

            running = as_completed([submit(number) for number in under_way.items], loop=client.loop)
            for item in islice(queue, max(0, slots * IN_FLIGHT_PER_WORKER - len(under_way.items))):
                running.add(submit(under_way.add(item)))
            for future in running:
                number = keys.pop(future.key)
                for item in islice(queue, 1):
                    running.add(submit(under_way.add(item)))
                try:
                    result = _result(future)
                except KilledWorker:
                    if lost is None:
                        raise
                    apart += under_way.divide(number)
                    continue
                del under_way.items[number]
                yield result
            for number in apart:  # one at a time: a part may only have waited beside the one that killed the workers
                try:
                    result = _result(submit(number))
                except KilledWorker as error:
                    if lost is None:
                        raise
                    result = lost(under_way.items[number], error)
                del under_way.items[number]
                yield result
        except gone as error:
            raise _Disconnected(f"{type(error).__name__}: {error}") from error


def _result(future: Any) -> Any:
    """What a piece of work returned; an error of the system in it is not one of the connection."""
    from distributed.comm.core import CommClosedError

    try:
        return future.result()
    except CommClosedError:
        raise
    except OSError as error:
        raise _Failed(error) from error


def _wait_for(address: str) -> None:
    from distributed import Client

    until = time.monotonic() + RECONNECT_SECONDS
    while time.monotonic() < until:
        try:
            with Client(address, timeout="3s", set_as_default=False) as client:
                client.wait_for_workers(1, timeout=10)
                return
        except (OSError, TimeoutError):
            time.sleep(1)


def _warm_plugin(warm: Callable[[], object]) -> Any:
    """A Dask worker plugin that loads the model when a worker joins."""
    from distributed import WorkerPlugin

    class Warm(WorkerPlugin):
        name = "ovrs-warm"

        def setup(self, worker: object) -> None:  # noqa: ARG002
            try:
                warm()
            except Exception as error:  # noqa: BLE001
                # a worker that cannot load the model must fail its blocks with the reason, not its registration
                log.warning("the model could not be loaded ahead: %s", error)

    return Warm()
