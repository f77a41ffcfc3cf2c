"""The few operations that runs, ledgers and blocks need of a place, whether a folder or a bucket.

Names are relative to the place, with `/` between their parts. A write is whole or not at all.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Found(NamedTuple):
    """Content of a name, and the tag of this very content."""

    content: bytes
    tag: str


class Entry(NamedTuple):
    """What a listing tells of a name."""

    key: str
    size: int
    """Bytes."""
    changed: float
    """Seconds of the last write, by the clock of the place."""
    tag: str


class Objects(Protocol):
    """One place. Errors: `OutputError` where a write is refused, `StoreError` where a read is."""

    def get(self, key: str) -> Found | None:
        """Content of a name; None when there is none."""

    def part(self, key: str, start: int | None, stop: int | None) -> bytes | None:
        """Bytes from `start` to `stop` of a name; a negative `start` counts from the end."""

    def head(self, key: str) -> Entry | None:
        """Return what a listing tells of a name; None when there is none."""

    def list(self, prefix: str = "", *, deep: bool = True) -> list[Entry]:
        """Names that begin with `prefix`, sorted. Without `deep` those in its own folder only."""

    def put(self, key: str, content: bytes) -> str:
        """Write a name, whatever is there; returns its tag."""

    def put_if_absent(self, key: str, content: bytes) -> str:
        """Write a name that must not exist; returns its tag, empty when it exists with another content."""

    def put_if_match(self, key: str, content: bytes, tag: str) -> str:
        """Replace a content that still has `tag`; returns the new tag, empty when it has another, or is gone."""

    def delete(self, key: str) -> None:
        """Remove a name, if it is there."""

    def delete_prefix(self, prefix: str) -> None:
        """Remove every name that begins with `prefix`."""
