"""Where batches of blocks are computed. Every executor takes a picklable function and items, and yields results as they come.

Nothing here knows rasters or models; nothing but its neighbours `cluster`, `session`, `door`, `workers` and `scheduler` knows
Dask.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from ovrs.engine.workers import Died, Plain, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ovrs.options import RunOptions

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_THREAD = 2
"""Items submitted ahead of each thread."""


def run(
    options: RunOptions,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    parts: Callable[[Item], list[Item]] | None = None,
    lost: Callable[[Item, Exception], Result] | None = None,
    stop: threading.Event | None = None,
) -> Generator[Result]:
    """Apply `work` to every item with the executor that the options name.

    Closing the iterator ends the work: nothing new is begun, and threads end before `close` returns.

    Args:
        options: Executor, workers, scheduler address and resources.
        work: A function, or a `Work`, which also says what its process must be. Picklable for Dask.
        items: Taken one by one; a million of them never exist at once.
        parts: For a function: as `Work.parts`.
        lost: For a function: as `Work.lost`. Without it, the error ends everything.
        stop: Ends the work early when set; `work` can look at it, too, to end within an item.
    """
    if options.executor == "serial":
        return (work(item) for item in items if stop is None or not stop.is_set())
    if options.executor == "threads":
        return run_threads(work, items, options.workers, stop)
    from ovrs.engine.cluster import run_dask

    return run_dask(work if isinstance(work, Work) else Plain(work, parts, lost), items, options, stop)


def is_elsewhere(options: RunOptions) -> bool:
    """Whether the blocks are computed by the workers of a standing scheduler, perhaps on other machines."""
    return options.executor == "dask" and options.scheduler is not None


def ask(options: RunOptions, question: Callable[[], Result], *, lost: Callable[[Exception], Exception]) -> Result:
    """Return the answer of one worker of the scheduler that the options name.

    Args:
        options: Scheduler and resources.
        question: Picklable. Its own errors are raised here.
        lost: Gives the error to raise when every worker that was asked died.

    Raises:
        OptionError: No scheduler answers at the address.
        SchedulerLostError: It went away and did not come back.
    """

    def none_answers(_: None, error: Exception) -> Result:
        if isinstance(error, Died) or type(error).__name__ == "KilledWorker":
            raise lost(error) from error
        raise error

    (answer,) = run(options, partial(_call, question), [None], lost=none_answers)
    return answer


def _call(question: Callable[[], Result], _: None) -> Result:
    return question()


def run_threads(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, stop: threading.Event | None = None
) -> Generator[Result]:
    """In `workers` threads; at most two items per worker are under way."""
    with ThreadPoolExecutor(workers, thread_name_prefix="ovrs") as pool:
        try:
            yield from _bounded(lambda item: pool.submit(work, item), iter(items), workers * IN_FLIGHT_PER_THREAD)
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
