"""Many names of one place at a time: object storage answers slowly, but to many questions at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from ovrs.objects.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ovrs.objects.interface import Objects

Result = TypeVar("Result")
_AT_ONCE = 16


def each(objects: Objects, keys: Iterable[str], work: Callable[[str], Result]) -> Iterator[tuple[str, Result]]:
    """Apply `work` to every key, in order; in a bucket to 16 at a time."""
    if isinstance(objects, Folder):
        yield from ((key, work(key)) for key in keys)
        return
    left = iter(keys)
    with ThreadPoolExecutor(_AT_ONCE, "ovrs-objects") as pool:
        while some := list(islice(left, 4 * _AT_ONCE)):
            yield from zip(some, pool.map(work, some), strict=True)
