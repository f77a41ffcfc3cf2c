"""Object storage as a place of named objects: whatever obstore knows, by one URL.

Credentials, region and endpoint come from the environment that the store's own tools read. A response that is lost
leaves open whether the write happened: the object is read back and compared.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ovrs.errors import OptionError, OutputError, StoreError, told
from ovrs.objects.folder import unguarded
from ovrs.objects.interface import Entry, Found
from ovrs.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import ObjectStore

log = logging.getLogger(__name__)

_CLIENT: Any = {"allow_http": True, "timeout": "30s"}
_RETRIES: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=40),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=8), "base": 2},
}
"""A store that throttles or fails is asked again. All tries together are shorter than a lock's patience."""
_AT_ONCE = 1000
"""Names removed by one call."""


@dataclass(frozen=True)
class Remote:
    """See `Objects`."""

    url: str
    guard: Callable[[], None] = field(default=unguarded, compare=False)
    """Called directly before each write or removal; raises where it may not happen."""

    def get(self, key: str) -> Found | None:
        import obstore

        with self._reading(key):
            try:
                found = obstore.get(self._store, key)
                return Found(bytes(found.bytes()), _tag(found.meta))
            except FileNotFoundError:
                return None

    def part(self, key: str, start: int | None, stop: int | None) -> bytes | None:
        import obstore

        with self._reading(key):
            try:
                if start is not None and stop is not None and start >= 0:
                    return bytes(obstore.get_range(self._store, key, start=start, end=stop)) if stop > start else b""
                if start is not None and start >= 0:
                    return bytes(obstore.get(self._store, key, options={"range": {"offset": start}}).bytes())
            except FileNotFoundError:
                return None
            if start is not None and stop is None:
                try:
                    return bytes(obstore.get(self._store, key, options={"range": {"suffix": -start}}).bytes())
                except FileNotFoundError:
                    return None
                except obstore.exceptions.NotSupportedError as error:
                    log.debug("%s", error)
            entry = self.head(key)
            if entry is None:
                return None
            first = max(0, entry.size + start) if start is not None else 0
            return self.part(key, first, entry.size if stop is None else stop)

    def head(self, key: str) -> Entry | None:
        import obstore

        with self._reading(key):
            try:
                return _entry(obstore.head(self._store, key))
            except FileNotFoundError:
                return None

    def list(self, prefix: str = "", *, deep: bool = True) -> list[Entry]:
        import obstore

        folder, _, begin = prefix.rpartition("/")
        with self._reading(prefix or "."):
            if deep:
                found = [m for part in obstore.list(self._store, folder or None) for m in part]
            else:
                found = list(obstore.list_with_delimiter(self._store, folder or None)["objects"])
        start = len(folder) + 1 if folder else 0
        return sorted(_entry(meta) for meta in found if meta["path"][start:].startswith(begin))

    def put(self, key: str, content: bytes) -> str:
        import obstore

        with self._writing(key):
            self.guard()
            return _tag(obstore.put(self._store, key, content, use_multipart=False))

    def put_if_absent(self, key: str, content: bytes) -> str:
        return self._conditional(key, content, "create")

    def put_if_match(self, key: str, content: bytes, tag: str) -> str:
        tags = dict(zip(("e_tag", "version"), tag.split("\n"), strict=True))
        return self._conditional(key, content, {name: value for name, value in tags.items() if value})

    def _conditional(self, key: str, content: bytes, mode: Any) -> str:
        import obstore

        with self._writing(key):
            self.guard()
            try:
                return _tag(obstore.put(self._store, key, content, mode=mode, use_multipart=False))
            except Exception as error:
                if not _is_theirs(error):
                    raise
                refused = isinstance(error, (FileExistsError, *_refusals()))
                if mode != "create":  # what was to be replaced is gone; what was to be made lacks its bucket
                    refused = refused or isinstance(error, FileNotFoundError)
                found = self.get(key)
                if found is not None and found.content == content:
                    return found.tag  # written by the call whose answer was lost
                if refused:
                    return ""
                raise

    def delete(self, key: str) -> None:
        import obstore

        with self._writing(key):
            self.guard()
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    def delete_prefix(self, prefix: str) -> None:
        import obstore

        keys = [entry.key for entry in self.list(prefix)]
        for first in range(0, len(keys), _AT_ONCE):
            with self._writing(prefix):
                self.guard()
                obstore.delete(self._store, keys[first : first + _AT_ONCE])

    def require_conditional(self) -> None:
        """Refuse a place that ignores or does not know conditional writes: two runs there would not see each other.

        Raises:
            OptionError: Names the way out.
        """
        _prove(self.url, hash(frozenset(os.environ.items())))

    def _prove(self) -> None:
        probe = f".probe-{uuid.uuid4().hex}"
        way = "give --staging FOLDER (or OVRS_STAGING), a folder that all workers see: the map is made there and copied"
        try:
            first = self.put_if_absent(probe, b"first")
            kept = first and not self.put_if_absent(probe, b"second")
            kept = kept and self.put_if_match(probe, b"third", first) and not self.put_if_match(probe, b"x", first)
        except OutputError as error:
            if "not supported" not in str(error).lower() and "not implemented" not in str(error).lower():
                raise
            raise OptionError(f"{redacted(self.url)} knows no conditional writes ({error}); {way}") from error
        finally:
            with contextlib.suppress(StoreError):
                self.delete(probe)
        if not kept:
            raise OptionError(f"{redacted(self.url)} ignores the conditions of conditional writes; {way}")

    @property
    def _store(self) -> ObjectStore:
        return _opened(self.url, hash(frozenset(os.environ.items())))

    @contextlib.contextmanager
    def _reading(self, key: str) -> Any:
        try:
            yield
        except Exception as error:
            if not _is_theirs(error):
                raise
            raise StoreError(f"{redacted(self.url)}/{key} cannot be read: {_line(error)}") from error

    @contextlib.contextmanager
    def _writing(self, key: str) -> Any:
        try:
            yield
        except Exception as error:
            if not _is_theirs(error):
                raise
            raise OutputError(
                f"cannot write {redacted(self.url)}/{key}: {_line(error)}; give the same command again when the cause is gone"
            ) from error


@functools.lru_cache(maxsize=64)
def _prove(url: str, _environment: int) -> None:
    """Once per place and process."""
    Remote(url)._prove()


@functools.lru_cache(maxsize=256)
def _opened(url: str, _environment: int) -> ObjectStore:
    from obstore.store import from_url

    try:
        opened: ObjectStore = from_url(url, client_options=_CLIENT, retry_config=_RETRIES)
        return opened
    except Exception as error:
        if not _is_theirs(error) and not isinstance(error, ValueError):
            raise
        raise OptionError(
            f"{redacted(url)}: {_line(error)}; maps are written to s3://, gs://, az:// or, made in a --staging folder "
            "and copied, to any address that fsspec knows"
        ) from error


def knows(url: str) -> bool:
    """Whether a URL is of a kind that maps can be made in."""
    from obstore import exceptions, parse_scheme

    try:
        return parse_scheme(url) not in ("http", "https", "file", "local", "memory")
    except (exceptions.BaseError, ValueError) as error:
        log.debug("%s", error)
        return False


def _refusals() -> tuple[type[BaseException], ...]:
    from obstore import exceptions

    return exceptions.PreconditionError, exceptions.AlreadyExistsError, exceptions.NotModifiedError


def _is_theirs(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "obstore" or (
        isinstance(error, (OSError, TimeoutError)) and not (isinstance(error, StoreError))
    )


def _line(error: BaseException) -> str:
    """Return the reason without the library's own account of it."""
    text = told(error).partition(" Debug source:")[0]
    message = re.search("<Message>(.*?)</Message>", text, re.DOTALL)
    return redacted(" ".join((message[1] if message else text).split()))


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], int(meta["size"]), meta["last_modified"].timestamp(), _tag(meta))


def _tag(meta: Any) -> str:
    return f"{meta.get('e_tag') or ''}\n{meta.get('version') or ''}"
