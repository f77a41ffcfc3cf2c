"""A folder of this machine, or of a file system that machines share, as a place of named files."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs import files
from ovrs.objects.interface import Entry, Found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


class _ChangedError(Exception):
    """Another content has taken the name."""


def unguarded() -> None:
    """Let every write pass."""


@dataclass(frozen=True)
class Folder:
    """See `Objects`."""

    path: Path
    guard: Callable[[], None] = field(default=unguarded, compare=False)
    """Called directly before each write or removal; raises where it may not happen."""

    def get(self, key: str) -> Found | None:
        try:
            with open(self.path / key, "rb") as stream:  # noqa: PTH123  (thousands of files: half of the time)
                return Found(stream.read(), _tag(os.fstat(stream.fileno())))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def part(self, key: str, start: int | None, stop: int | None) -> bytes | None:
        found = self.get(key)
        return None if found is None else found.content[start:stop]

    def head(self, key: str) -> Entry | None:
        try:
            status = (self.path / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(key, status.st_size, status.st_mtime, _tag(status))

    def list(self, prefix: str = "", *, deep: bool = True) -> list[Entry]:
        below, _, begin = prefix.rpartition("/")
        names = (name for name in self._names(self.path / below, deep) if name.startswith(begin))
        entries = (self.head(f"{below}/{name}" if below else name) for name in names)
        return sorted(entry for entry in entries if entry is not None)

    def _names(self, folder: Path, deep: bool) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir():
                    yield entry.name
                elif deep and not entry.is_symlink():
                    yield from (f"{entry.name}/{name}" for name in self._names(Path(entry.path), deep))

    def put(self, key: str, content: bytes) -> str:
        with files.atomic(self.path / key, sweep=False, keep_suffix=False, check=self.guard) as temporary:
            temporary.write_bytes(content)
        return self._tag_of(key)

    def put_if_absent(self, key: str, content: bytes) -> str:
        file = self.path / key
        temporary = files.temporary_path(file, keep_suffix=False)
        with files.writing(file):
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(content)
                self.guard()
                _link(temporary, file, content)
            except FileExistsError:
                return ""
            finally:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    temporary.unlink()
        return self._tag_of(key)

    def put_if_match(self, key: str, content: bytes, tag: str) -> str:
        """See `Objects`. The tag is compared directly before the new content takes the name: no system call does both."""

        def check() -> None:
            self.guard()
            if self._tag_of(key) != tag:
                raise _ChangedError

        with contextlib.suppress(_ChangedError):
            with files.atomic(self.path / key, sweep=False, keep_suffix=False, check=check) as temporary:
                temporary.write_bytes(content)
            return self._tag_of(key)
        return ""

    def touch(self, key: str) -> str:
        """Give a file the time of now, also on a full disk; returns its tag, empty when there is none."""
        self.guard()
        try:
            os.utime(self.path / key)
        except FileNotFoundError:
            return ""
        return self._tag_of(key)

    def delete(self, key: str) -> None:
        self.guard()
        with files.writing(self.path / key):
            (self.path / key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        for entry in self.list(prefix):
            self.delete(entry.key)
        if prefix.endswith("/") or not prefix:
            shutil.rmtree(self.path / prefix, ignore_errors=True)

    def _tag_of(self, key: str) -> str:
        entry = self.head(key)
        return "" if entry is None else entry.tag


def _tag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _link(temporary: Path, file: Path, content: bytes) -> None:
    """Give a content a name that is free; where the file system has no links, create the file by itself."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        raise
    except OSError as error:
        log.debug("no hard links for %s: %s", file, error)
        with file.open("xb") as stream:
            try:
                stream.write(content)
            except OSError:  # a part would stand for the whole
                file.unlink(missing_ok=True)
                raise
