"""Where blocks are computed. Every executor takes a picklable function and items, and yields results as they come.

Nothing here knows rasters or models; nothing elsewhere knows Dask.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from ovrs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ovrs.options import RunOptions

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 2
"""Items submitted ahead of each worker: enough to keep it busy, few enough to bound memory and scheduler load."""


def run(options: RunOptions, fn: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Apply `fn` to every item with the executor that the options name."""
    if options.executor == "serial":
        return run_serial(fn, items)
    if options.executor == "threads":
        return run_threads(fn, items, options.workers)
    return run_dask(fn, items, options.workers, options.scheduler)


def run_serial(fn: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """One after another in this thread."""
    return map(fn, items)


def run_threads(fn: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """In `workers` threads; at most two items per worker are under way."""
    with ThreadPoolExecutor(workers, thread_name_prefix="ovrs") as pool:
        yield from _bounded(lambda item: pool.submit(fn, item), iter(items), workers * IN_FLIGHT_PER_WORKER)


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
    fn: Callable[[Item], Result], items: Iterable[Item], workers: int, scheduler: str | None
) -> Iterator[Result]:
    """On a Dask cluster: a standing one at `scheduler`, else `workers` local processes for the time of the run.

    Raises:
        OptionError: No scheduler answers at the address.
    """
    from distributed import Client, LocalCluster, as_completed

    if scheduler is None:
        cluster: Any = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, processes=True)
    else:
        cluster = None
    try:
        try:
            client = Client(cluster or scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise OptionError(
                f"no Dask scheduler answers at {scheduler}: {error}. Start one with `dask scheduler` and `dask worker {scheduler}`"
            ) from error
        with client:
            slots = max(1, sum(client.nthreads().values()))
            queue = iter(items)

            def submit(item: Item) -> Any:
                return client.submit(fn, item, pure=False, retries=2)

            running = as_completed([submit(item) for item in islice(queue, slots * IN_FLIGHT_PER_WORKER)])
            for future in running:
                result = future.result()
                for item in islice(queue, 1):
                    running.add(submit(item))
                yield result
    finally:
        if cluster is not None:
            cluster.close()
