"""The run directory `NAME.run/` beside a store: what the run is, which blocks are done, and who is working.

run.json        options, digest and provenance, written once
blocks/R_C.json one marker per block: done with its numbers, or failed with the reason
lock.json       owner and heartbeat of the process that runs
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs import files
from ovrs.errors import StoreError, StoreLockedError

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """Content of one marker."""

    name: str
    status: str
    """`done`, `empty` (no valid pixel) or `failed`."""
    attempt: int = 1
    seconds: float = 0.0
    tiles: int = 0
    histogram: dict[str, int] = field(default_factory=dict)
    """Pixels per class index."""
    areas_m2: dict[str, float] = field(default_factory=dict)
    """True ground area per class index."""
    confidence_sum: int = 0
    crc: str = ""
    """CRC-32 of the block's label and confidence bytes."""
    events: dict[str, int] = field(default_factory=dict)
    reason: str = ""

    @property
    def finished(self) -> bool:
        return self.status in ("done", "empty")


class RunDir:
    """Access to one run directory. Holds no state but the path: the truth is on disk."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.path = store.with_name(store.name.removesuffix(".zarr") + ".run")
        self.blocks = self.path / "blocks"

    def begin(self, description: dict[str, Any]) -> None:
        """Create the directory and `run.json`."""
        self.blocks.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", description)

    def description(self) -> dict[str, Any]:
        """Content of `run.json`.

        Raises:
            StoreError: No run was begun here.
        """
        file = self.path / "run.json"
        if not file.is_file():
            raise StoreError(f"no run at {self.path}: nothing was begun for {self.store}")
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return content

    @property
    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    def record(self, record: BlockRecord) -> None:
        """Write a marker; call only after the block's data are in the store."""
        write_json(self.blocks / f"{record.name}.json", asdict(record))

    def record_of(self, name: str) -> BlockRecord | None:
        """The marker of one block, if there is one."""
        file = self.blocks / f"{name}.json"
        return BlockRecord(**json.loads(file.read_text("utf-8"))) if file.is_file() else None

    def records(self) -> dict[str, BlockRecord]:
        """All markers by block name."""
        found = {}
        for file in sorted(self.blocks.glob("*.json")):
            record = BlockRecord(**json.loads(file.read_text("utf-8")))
            found[record.name] = record
        return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write atomically: readers see the old file or the new one, never a part."""
    files.write_text(path, json.dumps(content, indent=1, default=str), sweep=False)


class Lock:
    """One run per store. Taken over only when its owner is gone or its heartbeat has expired."""

    def __init__(self, run: RunDir) -> None:
        self.file = run.path / "lock.json"
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._heartbeat, name="ovrs-heartbeat", daemon=True)

    def __enter__(self) -> Lock:
        with files.writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if not self._create():
                self._take_over()
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._beat.join()
        if _content(self.file).get("token") == self.owner["token"]:
            self.file.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            handle = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "w") as stream:
                json.dump(self.owner, stream)
        except OSError:  # an empty lock would stand for a live one
            self.file.unlink(missing_ok=True)
            raise
        return True

    def _take_over(self) -> None:
        holder = _content(self.file)
        if not _expired(self.file, holder):
            raise StoreLockedError(
                f"{self.file.parent} is being written by process {holder.get('pid')} on {holder.get('host')}; "
                f"wait for it, or end it and try again ({EXPIRY_SECONDS:.0f} s after its last sign of life)"
            )
        aside = self.file.with_name(f"lock.{self.owner['token']}.stale")
        with contextlib.suppress(FileNotFoundError):  # its owner ended properly in this moment
            self.file.rename(aside)
        if aside.exists():
            taken = _content(aside)
            if taken.get("token") != holder.get("token"):  # somebody else was faster and this is his live lock
                os.link(aside, self.file)
                aside.unlink()
                raise StoreLockedError(
                    f"{self.file.parent} was just taken over by process {taken.get('pid')} on {taken.get('host')}"
                )
            aside.unlink()
        if not self._create():
            raise StoreLockedError(f"{self.file.parent} was just taken over by another process")

    def _heartbeat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.file)
            except FileNotFoundError:
                log.warning("the lock of %s was removed while this run was writing", self.file.parent)
                return


def _content(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # gone, or killed while writing it
        return {}
    return content


def _expired(file: Path, holder: dict[str, Any]) -> bool:
    try:
        silent = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return True
    if silent > EXPIRY_SECONDS:
        return True
    return (
        holder.get("host") == socket.gethostname() and isinstance(holder.get("pid"), int) and not _alive(holder["pid"])
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
