"""The run directory `NAME.run/` beside a store: what the run is, which blocks are done, and who is working.

run.json        options, digest and provenance, written once
blocks/R_C.json one marker per block: done with its numbers, or failed with the reason
manifest.json   checksums of every file of the finished store, see `ovrs.run.verify`
lock.json       owner and heartbeat of the process that runs

Each JSON file but the lock carries a checksum of its content. A marker that does not match counts as not written.
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
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ovrs import files
from ovrs.errors import StoreError, StoreLockedError
from ovrs.provenance import canonical
from ovrs.store.record import RunDescription

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
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: read, compute, write."""
    worker: str = ""
    """Host and process that computed the block."""
    tiles: int = 0
    histogram: dict[str, int] = field(default_factory=dict)
    """Pixels per class index."""
    areas_m2: dict[str, float] = field(default_factory=dict)
    """True ground area per class index."""
    confidence_sum: int = 0
    crc: str = ""
    """CRC-32 of the block's label, confidence and, where they are stored, score bytes."""
    events: dict[str, int] = field(default_factory=dict)
    error: str = ""
    """Class name of the error of a failed block: what programs decide by."""
    reason: str = ""
    """Why the block failed, for people."""

    @property
    def finished(self) -> bool:
        return self.status in ("done", "empty")


class RunDir:
    """Access to one run directory. Holds no state but the path: the truth is on disk."""

    def __init__(self, store: Path) -> None:
        self.store = store = files.named(store)
        self.path = store.with_name(store.name.removesuffix(".zarr") + ".run")
        self.blocks = self.path / "blocks"

    def begin(self, description: RunDescription) -> None:
        """Create the directory and `run.json`."""
        self.folder(self.blocks)
        write_sealed(self.path / "run.json", description.dump())

    def description(self) -> RunDescription:
        """Content of `run.json`.

        Raises:
            StoreError: No run was begun here, or the file is damaged.
        """
        file = self.path / "run.json"
        if not self.exists:
            raise StoreError(f"no run at {self.path}: nothing was begun for {self.store}, or {file.name} is lost")
        content, fault = read_sealed(file)
        fault = fault or _description_fault(content)
        if not fault:
            try:
                return RunDescription.model_validate(content)
            except ValidationError as error:
                first = error.errors()[0]
                fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        way = f"`ovrs repair {self.store}` restores it" if self.store.exists() else "--overwrite begins anew"
        raise StoreError(f"{file} is damaged ({fault}); put back a copy of it, or {way}")

    @property
    def exists(self) -> bool:
        return os.path.lexists(self.path / "run.json")

    def record(self, record: BlockRecord) -> None:
        """Write a marker; call only after the block's data are in the store."""
        self.folder(self.blocks)
        file = self.blocks / f"{record.name}.json"
        if file.is_dir():  # somebody's folder: kept under another name
            file.rename(self.blocks / f".{file.name}.{uuid.uuid4().hex[:8]}")
        write_sealed(file, asdict(record))

    def forget(self, name: str) -> None:
        """Remove a block's marker, so that the block counts as not computed."""
        file = self.blocks / f"{name}.json"
        if not file.is_dir():
            file.unlink(missing_ok=True)

    def record_of(self, name: str) -> BlockRecord | None:
        """The marker of one block, if there is a readable one."""
        return _marker(self.blocks / f"{name}.json")

    def records(self) -> dict[str, BlockRecord]:
        """All readable markers by block name.

        Raises:
            StoreError: `blocks` is not a folder.
        """
        found = (_marker(file) for file in self._markers())
        return {record.name: record for record in found if record is not None}

    def damaged(self) -> list[str]:
        """Names of the markers that cannot be read; their blocks count as not computed."""
        return [file.stem for file in self._markers() if _marker(file) is None]

    def _markers(self) -> list[Path]:
        if self.blocks.exists() and not self.blocks.is_dir():
            raise StoreError(f"{self.blocks} is not a folder; remove it, its blocks are then computed again")
        return sorted(self.blocks.glob("[0-9]*.json"))

    def folder(self, path: Path) -> None:
        """Create a folder of the run directory.

        Raises:
            StoreError: A file is in its place.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError(
                f"{error.filename} is in the way of the run directory {self.path}; move it away"
            ) from error


def _marker(file: Path) -> BlockRecord | None:
    found, fault = read_sealed(file)
    content: Any = found  # of any form, until the names are known
    known = {f.name for f in fields(BlockRecord)}
    if fault or content.get("name") != file.stem or not {"status"} <= content.keys() <= known:
        return None
    return BlockRecord(**content)


def _description_fault(content: Any) -> str:
    """What keeps `content` from describing a run; empty when nothing does."""
    for key in ("digest", "grid", "plan", "options", "vocabulary"):
        if not isinstance(content.get(key), dict):
            return f"no {key!r}"
    if not isinstance(content.get("uri"), str) or not all(isinstance(v, str) for v in content["digest"].values()):
        return "no scene or digest"
    plan = [content["plan"].get(key) for key in ("crop", "stride", "crops_per_tile", "block_pitches")]
    shape = content["grid"].get("shape")
    numbers = [*plan, *shape] if isinstance(shape, list) and len(shape) == 2 else [None]
    return "" if all(type(n) is int and n > 0 for n in numbers) else "no plan"


def write_sealed(path: Path, content: dict[str, object]) -> None:
    """Write a JSON object with a checksum of its content, atomically."""
    plain: dict[str, object] = json.loads(json.dumps(content, default=str))
    write_json(path, {**plain, "check": _check(plain)})


def read_sealed(path: Path) -> tuple[dict[str, object], str]:
    """Read what `write_sealed` wrote.

    Returns:
        The content without its checksum, and what is wrong with the file; the latter is empty when nothing is.
    """
    try:
        content: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{type(error).__name__}: {error}"
    if not isinstance(content, dict):
        return {}, "no JSON object"
    if content.pop("check", None) != _check(content):
        return {}, "its content does not match its checksum"
    return content, ""


def _check(content: dict[str, object]) -> str:
    return f"{zlib.crc32(canonical(content).encode()):08x}"


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write atomically: readers see the old file or the new one, never a part."""
    files.write_text(path, json.dumps(content, indent=1, default=str), sweep=False)


class Lock:
    """One run per store. Taken over only when its owner is gone or its heartbeat has expired."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.file = run, run.path / "lock.json"
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._heartbeat, name="ovrs-heartbeat", daemon=True)

    def __enter__(self) -> Lock:
        self.run.folder(self.file.parent)
        if self.file.is_dir():
            raise StoreLockedError(f"{self.file} is a folder and no lock; remove it")
        with files.writing(self.file):
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
            who = (
                f"process {holder['pid']} on {holder.get('host')}"
                if "pid" in holder
                else "a process that cannot be told"
            )
            raise StoreLockedError(
                f"{self.file.parent} is being written by {who}; wait for it, or end it and try again: "
                f"{self.file} counts as left behind {EXPIRY_SECONDS:.0f} s after its last sign of life"
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


def _content(file: Path) -> dict[str, object]:
    try:
        content: Any = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):  # gone, or killed while writing it
        return {}
    return content if isinstance(content, dict) else {}


def _expired(file: Path, holder: dict[str, object]) -> bool:
    try:
        silent = time.time() - file.stat().st_mtime
        if silent < -HEARTBEAT_SECONDS:  # the clocks differ, so only a change tells that the owner lives
            silent = _watched(file)
    except FileNotFoundError:
        return True
    if silent > EXPIRY_SECONDS:
        return True
    pid = holder.get("pid")
    return holder.get("host") == socket.gethostname() and type(pid) is int and not _alive(pid)


def _watched(file: Path) -> float:
    """Seconds without a sign of life of a lock whose time lies in the future: 0, or infinite after three heartbeats."""
    log.warning("%s carries a time in the future; watching whether its owner lives", file)
    before, until = file.stat().st_mtime_ns, time.monotonic() + 3 * HEARTBEAT_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, HEARTBEAT_SECONDS))
        if file.stat().st_mtime_ns != before:
            return 0.0
    return float("inf")


def _alive(pid: int) -> bool:
    if not 0 < pid < 2**31:  # no process has such a number
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
