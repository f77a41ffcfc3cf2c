"""Items on a Dask cluster: a standing one, or local processes for the time of the run."""

from __future__ import annotations

import logging
import signal
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, TypeVar

from ovrs.engine import scheduler
from ovrs.engine.allocator import ENVIRONMENT
from ovrs.engine.session import Backlog, Disconnected, Session
from ovrs.engine.workers import LOCAL_WORKER
from ovrs.errors import SchedulerLostError

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Iterable, Iterator

    from ovrs.engine.workers import Work
    from ovrs.options import RunOptions

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

RECONNECTS = 5
RECONNECT_SECONDS = 30.0
"""How often and how long a lost scheduler is waited for."""


def run_dask(
    work: Work[Item, Result], items: Iterable[Item], options: RunOptions, stop: threading.Event | None = None
) -> Generator[Result]:
    """On a Dask cluster: a standing one at `options.scheduler`, else local processes for the time of the run.

    A worker that dies takes nothing with it: its items go to others, three times. An item that still seems to kill
    workers is divided, and each part is tried alone. Workers that join later get items, workers that cannot do the work
    are left out by name. A scheduler that is restarted is waited for, and what was under way is submitted again.

    Raises:
        OptionError: No scheduler answers at the address.
        SchedulerLostError: It went away and did not come back.
        WorkersUnfitError: Every worker was left out.
    """
    cluster: Any = _local_cluster(options) if options.scheduler is None else None
    backlog = Backlog(iter(items), work)
    try:
        for attempt in range(RECONNECTS + 1):
            try:
                with scheduler.connected(options, cluster) as client:
                    yield from Session(client, backlog, options, stop, local=cluster is not None).results()
                return
            except Disconnected as error:
                if cluster is not None or attempt == RECONNECTS:
                    raise SchedulerLostError(
                        f"the Dask scheduler at {options.scheduler or 'this machine'} went away ({error}); finished blocks "
                        "are kept, `ovrs resume` goes on"
                    ) from error
                log.warning("lost the Dask scheduler (%s); waiting for it to come back", error)
                scheduler.wait_for(options, RECONNECT_SECONDS)
    finally:
        if cluster is not None:
            cluster.close()


def _local_cluster(options: RunOptions) -> Any:
    import dask
    from distributed import LocalCluster

    before = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    # workers compute in threads that are not their first: see `ovrs.engine.allocator`, also for Dask's own setting
    own = ENVIRONMENT | {LOCAL_WORKER: "yes"}  # each says in `ovrs.engine.workers.join` which it is
    with dask.config.set({"distributed.nanny.pre-spawn-environ": before | own}), _deaf_children():
        return LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # any free port: several runs of a machine have a cluster each
            silence_logs=logging.WARNING if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL,
            processes=True,
            resources=options.resources or None,
        )


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Begin processes that do not hear Ctrl-C, which a terminal sends to all; the first process ends them in order.

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
