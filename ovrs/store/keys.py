"""Zarr over a place of named objects: reads by ranges, conditional writes, and a guard before each of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.storage import LocalStore, WrapperStore

from ovrs.objects.careful import replace_known
from ovrs.objects.folder import unguarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from ovrs.objects.interface import Entry, Found, Objects

_HIDDEN = ".unfinished"


def hidden(name: str) -> str:
    """Return the name under which `Hidden` keeps another."""
    return f"{_HIDDEN}{name}"


@dataclass(frozen=True)
class Hidden:
    """A place where some names are kept under others, as `Objects`."""

    below: Objects
    names: tuple[str, ...]

    def _key(self, key: str) -> str:
        return hidden(key) if key in self.names else key

    def get(self, key: str) -> Found | None:
        return self.below.get(self._key(key))

    def part(self, key: str, start: int | None, stop: int | None) -> bytes | None:
        return self.below.part(self._key(key), start, stop)

    def head(self, key: str) -> Entry | None:
        entry = self.below.head(self._key(key))
        return None if entry is None else entry._replace(key=key)

    def list(self, prefix: str = "", *, deep: bool = True) -> list[Entry]:
        found = []
        for entry in self.below.list("" if "/" not in prefix else prefix, deep=deep):
            shown = entry.key.removeprefix(_HIDDEN)
            if entry.key not in self.names and shown.startswith(prefix):
                found.append(entry._replace(key=shown))
        return sorted(found)

    def put(self, key: str, content: bytes) -> str:
        return self.below.put(self._key(key), content)

    def put_if_absent(self, key: str, content: bytes) -> str:
        return self.below.put_if_absent(self._key(key), content)

    def put_if_match(self, key: str, content: bytes, tag: str) -> str:
        return self.below.put_if_match(self._key(key), content, tag)

    def delete(self, key: str) -> None:
        self.below.delete(self._key(key))

    def delete_prefix(self, prefix: str) -> None:
        if prefix:
            self.below.delete_prefix(prefix)
            return
        for entry in self.list():
            self.delete(entry.key)


class KeyStore(Store):
    """A zarr store over `Objects`."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, objects: Objects, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.objects = objects

    def with_read_only(self, read_only: bool = False) -> KeyStore:
        return KeyStore(self.objects, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyStore) and other.objects == self.objects

    def __hash__(self) -> int:
        return hash(repr(self.objects))

    def __str__(self) -> str:
        return str(getattr(self.objects, "url", self.objects))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        content = await asyncio.to_thread(self._content, key, byte_range)
        return None if content is None else prototype.buffer.from_bytes(content)

    def _content(self, key: str, wanted: ByteRequest | None) -> bytes | None:
        if wanted is None:
            found = self.objects.get(key)
            return None if found is None else found.content
        if isinstance(wanted, RangeByteRequest):
            return self.objects.part(key, wanted.start, wanted.end)
        if isinstance(wanted, OffsetByteRequest):
            return self.objects.part(key, wanted.offset, None)
        assert isinstance(wanted, SuffixByteRequest)  # zarr knows these three
        return self.objects.part(key, -wanted.suffix, None)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self.objects.head, key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(replace_known, self.objects, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        self._check_writable()
        await asyncio.to_thread(self.objects.delete, key)

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for entry in await asyncio.to_thread(self.objects.list, prefix):
            yield entry.key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        below = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        seen: set[str] = set()
        for entry in await asyncio.to_thread(self.objects.list, below):
            name = entry.key[len(below) :].partition("/")[0]
            if name not in seen:
                seen.add(name)
                yield name


def guarded_folder(path: Path, guard: Callable[[], None]) -> Store:
    """Return a folder as zarr's own store, with a guard before each write and removal."""
    return LocalStore(path) if guard is unguarded else _Guarded(LocalStore(path), guard)


class _Guarded(WrapperStore[Any]):
    def __init__(self, store: Store, guard: Callable[[], None]) -> None:
        super().__init__(store)
        self.guard = guard

    def _with_store(self, store: Store) -> _Guarded:
        return _Guarded(store, self.guard)

    async def _open(self) -> None:
        self.guard()  # opening makes the folder
        await self._store._open()

    async def _ensure_open(self) -> None:
        self.guard()
        await self._store._ensure_open()

    async def set(self, key: str, value: Buffer) -> None:
        self.guard()
        await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        self.guard()
        await self._store.set_if_not_exists(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        self.guard()
        await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        self.guard()
        await self._store.delete_dir(prefix)

    async def clear(self) -> None:
        self.guard()
        await self._store.clear()
