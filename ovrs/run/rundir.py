"""The run directory `NAME.run/` beside a store: what the run is, which blocks are done, and who is working.

It lies in a folder or in object storage, as its map does:

run.json        options, digest and provenance, written once
blocks/R_C.json one marker per block: done with its numbers, or failed with the reason
complete.json   written after the finished map has its name
manifest.json   checksums of every file of the finished store, see `ovrs.run.verify`
lock.json       owner and heartbeat of the process that runs, see `ovrs.run.lock`

Each JSON file but the lock carries a checksum of its content. A marker that does not match counts as not written.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import uuid
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ovrs import files
from ovrs.errors import StoreError
from ovrs.objects.address import Place, is_there, objects_at
from ovrs.objects.careful import replace_known
from ovrs.objects.folder import unguarded
from ovrs.provenance import canonical
from ovrs.run import markers
from ovrs.store.record import RunDescription

if TYPE_CHECKING:
    from ovrs.objects.claim import Fence

log = logging.getLogger(__name__)

DESCRIPTION, COMPLETE = "run.json", "complete.json"
_BLOCKS = "blocks"


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """Content of one marker."""

    name: str
    status: str
    """`done`, `empty` (no valid pixel) or `failed`."""
    attempt: int = 1
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, see `ovrs.run.stages`."""
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
    overviews: str = ""
    """CRC-32 of the block's own part of the overviews; empty where it wrote none."""
    events: dict[str, int] = field(default_factory=dict)
    ties: dict[str, int] = field(default_factory=dict)
    """Winners and near seconds on a sparse grid (`ovrs.engine.ties`)."""
    error: str = ""
    """Class name of the error of a failed block: what programs decide by."""
    reason: str = ""
    """Why the block failed, for people."""

    @property
    def finished(self) -> bool:
        """Return whether the block needs no more work."""
        return self.status in ("done", "empty")


def run_folder(out: Path) -> Path:
    """Return the run directory of a map of this machine."""
    return out.with_name(out.name.removesuffix(".zarr") + ".run")


class RunDir:
    """Access to one run directory. Holds no state but the place: the truth is there."""

    def __init__(self, store: Place, fence: Fence | None = None) -> None:
        """Take the place of a map, `NAME.zarr`; with a fence every write is refused once the run's claim is lost."""
        self.store = store = files.named(store) if isinstance(store, Path) else store
        self.path = store.with_name(store.name.removesuffix(".zarr") + ".run")
        self.guard = unguarded if fence is None else fence.check
        self.objects = objects_at(self.path, self.guard)

    @property
    def blocks(self) -> Place:
        """Where the markers lie."""
        return self.path / _BLOCKS

    def begin(self, description: RunDescription) -> None:
        """Create the directory and `run.json`."""
        if isinstance(self.path, Path):
            self.folder(self.path / _BLOCKS)
        self.write(DESCRIPTION, description.dump())

    def description(self) -> RunDescription:
        """Content of `run.json`.

        Raises:
            StoreError: No run was begun here, or the file is damaged.
        """
        file = self.path / DESCRIPTION
        if not self.exists:
            raise StoreError(f"no run at {self.path}: nothing was begun for {self.store}, or {file.name} is lost")
        content, fault = self.read(DESCRIPTION)
        fault = fault or _description_fault(content)
        if not fault:
            try:
                return RunDescription.model_validate(content)
            except ValidationError as error:
                first = error.errors()[0]
                fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        way = f"`ovrs repair {self.store}` restores it" if is_there(self.store) else "--overwrite begins anew"
        raise StoreError(f"{file} is damaged ({fault}); put back a copy of it, or {way}")

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        if isinstance(self.path, Path):
            return os.path.lexists(self.path / DESCRIPTION)
        return self.objects.head(DESCRIPTION) is not None

    def complete(self, digest: dict[str, str]) -> None:
        """Write the last word of a run, after the map is there for readers."""
        self.write(COMPLETE, {"digest": digest, "map": self.store.name})

    def record(self, record: BlockRecord) -> BlockRecord:
        """Write a marker; call only after the block's data are in the store.

        Returns:
            The marker that is there now: a block that is done stays done, whatever fails later.

        Raises:
            StoreLockedError: The run was taken over by another process.
        """
        self.guard()
        key = f"{_BLOCKS}/{record.name}.json"
        before = self.record_of(record.name)
        if before is not None and before.finished and not record.finished:
            log.warning("block %s is done; that it failed now (%s) is not recorded", record.name, record.reason)
            return before
        if isinstance(self.path, Path):
            self.folder(self.path / _BLOCKS)
            if (file := self.path / key).is_dir():  # somebody's folder: kept under another name
                file.rename(file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}"))
        self.write(key, asdict(record))
        return record

    def forget(self, name: str) -> None:
        """Remove a block's marker, so that the block counts as not computed."""
        if not (isinstance(self.blocks, Path) and (self.blocks / f"{name}.json").is_dir()):
            self.objects.delete(f"{_BLOCKS}/{name}.json")

    def record_of(self, name: str) -> BlockRecord | None:
        """Return the marker of one block, if there is a readable one."""
        return self._marker(f"{_BLOCKS}/{name}.json")

    def records(self) -> dict[str, BlockRecord]:
        """All readable markers by block name.

        Raises:
            StoreError: `blocks` is not a folder.
        """
        return {name: record for name, record in self.markers().items() if record is not None}

    def damaged(self) -> list[str]:
        """Names of the markers that cannot be read; their blocks count as not computed."""
        return [name for name, record in self.markers().items() if record is None]

    def markers(self) -> dict[str, BlockRecord | None]:
        """Every marker by block name; None where one cannot be read. Reads what changed since this process read it.

        Raises:
            StoreError: `blocks` is not a folder.
        """
        if isinstance(self.blocks, Path) and self.blocks.exists() and not self.blocks.is_dir():
            raise StoreError(f"{self.blocks} is not a folder; remove it, its blocks are then computed again")
        found = markers.read(self.objects, self.path, _BLOCKS, self._marker)
        return {key.rpartition("/")[2].removesuffix(".json"): record for key, record in found.items()}

    def _marker(self, key: str) -> BlockRecord | None:
        found, fault = self.read(key)
        content: Any = found  # of any form, until the names are known
        if fault or content.get("name") != Path(key).stem or not {"status"} <= content.keys() <= _known_keys():
            return None
        return BlockRecord(**content)

    def write(self, key: str, content: dict[str, object]) -> None:
        """Write a JSON object with a checksum of its content, whole or not at all."""
        plain: dict[str, object] = json.loads(json.dumps(content, default=str))
        told = json.dumps({**plain, "check": _check(plain)}, indent=1).encode("utf-8", "surrogateescape")
        replace_known(self.objects, key, told)

    def read(self, key: str) -> tuple[dict[str, object], str]:
        """Read what `write` wrote.

        Returns:
            The content without its checksum, and what is wrong with the file; the latter is empty when nothing is.
        """
        try:
            found = self.objects.get(key)
            if found is None:
                return {}, "it is missing, or no file"
            content: Any = json.loads(found.content.decode())
        except (OSError, ValueError, RecursionError) as error:
            return {}, f"{type(error).__name__}: {error}"
        if not isinstance(content, dict):
            return {}, "no JSON object"
        if content.pop("check", None) != _check(content):
            return {}, "its content does not match its checksum"
        return content, ""

    def clear(self) -> None:
        """Remove everything but locks."""
        if not isinstance(self.path, Path):
            for entry in self.objects.list():
                if not entry.key.startswith("lock."):
                    self.objects.delete(entry.key)
            return
        for path in self.path.iterdir() if self.path.exists() else ():
            if not path.name.startswith("lock."):
                self.guard()
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

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


@functools.cache
def _known_keys() -> frozenset[str]:
    return frozenset(f.name for f in fields(BlockRecord))


def _description_fault(content: Any) -> str:
    """Return what keeps `content` from describing a run; empty when nothing does."""
    for key in ("digest", "grid", "plan", "options", "vocabulary"):
        if not isinstance(content.get(key), dict):
            return f"no {key!r}"
    if not isinstance(content.get("uri"), str) or not all(isinstance(v, str) for v in content["digest"].values()):
        return "no scene or digest"
    plan = [content["plan"].get(key) for key in ("crop", "stride", "crops_per_tile", "block_pitches")]
    shape = content["grid"].get("shape")
    numbers = [*plan, *shape] if isinstance(shape, list) and len(shape) == 2 else [None]
    return "" if all(type(n) is int and n > 0 for n in numbers) else "no plan"


def _check(content: dict[str, object]) -> str:
    return f"{zlib.crc32(canonical(content).encode()):08x}"
