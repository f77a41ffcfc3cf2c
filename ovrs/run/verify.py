"""Whether a store still holds what its run wrote. Names every file that differs; changes nothing.

A finished store is compared with `NAME.run/manifest.json`: size and SHA-256 of each file. An unfinished one has no
manifest; its blocks are compared with the CRC-32 in their markers.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.engine.tiling import Plan, TileGeometry
from ovrs.errors import StoreError
from ovrs.objects.address import Place, objects_at
from ovrs.objects.many import each
from ovrs.provenance import canonical
from ovrs.run import adaptation
from ovrs.run.rundir import RunDir
from ovrs.store import layout as store
from ovrs.store.codec import pixel_crc
from ovrs.store.keys import hidden
from ovrs.store.target import target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import zarr
    from numpy.typing import NDArray
    from zarr.abc.store import Store

    from ovrs.engine.tiling import Block
    from ovrs.objects.interface import Objects
    from ovrs.run.rundir import BlockRecord
    from ovrs.scene.grid import Window
    from ovrs.store.record import RunDescription

log = logging.getLogger(__name__)

MANIFEST, PARTS = "manifest.json", "manifest"
FOREIGN = "foreign, not written by this run"
FOLDER = "a folder in place of a file"


Checksum = list[int | str]
"""Size of a file in bytes, and SHA-256."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished run knows of its map: content of `manifest.json`, and of its parts for a large map."""

    facts: Mapping[str, object] = field(default_factory=dict)
    """The map's own record as JSON. Empty: unknown."""
    load: Callable[[], Mapping[str, Checksum]] = dict
    """Reads `files`."""

    @cached_property
    def files(self) -> Mapping[str, Checksum]:
        """Checksum of every file by its path in the store. Empty: unknown."""
        return self.load()

    @property
    def holes(self) -> list[str]:
        """Names of the blocks that the map lacks."""
        found: Any = self.facts.get("holes")
        return list(found or ())

    @property
    def learned(self) -> str:
        """Digest of what was learned from the scene; empty for nothing."""
        return learned_of(self.facts)


def learned_of(facts: Mapping[str, object]) -> str:
    """Digest of what a map's segmenter learned from its scene, from the map's record; empty for nothing."""
    found: Any = facts.get("scene_adaptation")
    return str(found["learned"]) if found else ""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as the run left it."""

    path: str
    """File relative to the store, or a file of the run directory with that directory's name before it."""
    fault: str

    def __str__(self) -> str:
        return f"{self.path}: {self.fault}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Outcome of a check."""

    finished: bool
    """Whether the store has its final name."""
    compared: int
    """Files of a finished store, or finished blocks of an unfinished one, that were compared."""
    blocks: int
    """Blocks of the whole run."""
    problems: tuple[Problem, ...]


def check(out: Place) -> Report:
    """Compare a finished or unfinished store with what its run recorded.

    Raises:
        StoreError: There is no run directory to compare with, its `run.json` is damaged, or there is no store.
    """
    run, target = RunDir(out), target_of(out)
    if not run.exists and target.is_finished:
        raise StoreError(f"{out} has no run directory {run.path} beside it, so there is nothing to compare it with")
    plan = plan_of(run.description())
    if target.is_finished:
        return _finished(out, run, plan)
    if not target.is_begun:
        raise StoreError(f"no store at {out}, though {run.path} tells of a run; `ovrs resume {out}` computes it again")
    damaged = [Problem(_marker(run, name), "damaged, its block counts as not computed") for name in run.damaged()]
    records = {n: r for n, r in run.records().items() if r.finished}
    try:
        wrong = [problem for _, problem in damaged_blocks(target.unfinished(), plan, records)]
    except StoreError as error:
        wrong = [Problem(out.name, str(error))]
    return Report(finished=False, compared=len(records), blocks=plan.block_count, problems=(*damaged, *wrong))


def _finished(out: Place, run: RunDir, plan: Plan) -> Report:
    manifest = read_manifest(run)
    problems = list(_markers(run, plan, manifest))
    if not manifest.files:
        way = "its files cannot be compared one by one"
        problems.insert(0, Problem(f"{run.path.name}/{MANIFEST}", f"missing or damaged, {way}"))
        records = {n: r for n, r in run.records().items() if r.finished}
        try:
            problems += [problem for _, problem in damaged_blocks(store.readable(out), plan, records)]
        except StoreError as error:
            problems.append(Problem(out.name, str(error)))
    else:
        problems += differences(out, manifest.files)
    compared = len(manifest.files)
    return Report(finished=True, compared=compared, blocks=plan.block_count, problems=tuple(problems))


def _markers(run: RunDir, plan: Plan, manifest: Manifest) -> Iterator[Problem]:
    records, holes = run.records(), set(manifest.holes)
    for name in plan.block_names():
        if name not in holes and not (name in records and records[name].finished):
            yield Problem(_marker(run, name), "missing or damaged")
    if manifest.learned:
        try:
            same = adaptation.digest_of(run.path / adaptation.STATE_FILE) == manifest.learned
        except StoreError:
            same = False
        if not same:
            yield Problem(f"{run.path.name}/{adaptation.STATE_FILE}", "missing or damaged")


def _marker(run: RunDir, name: str) -> str:
    return f"{run.path.name}/{run.blocks.name}/{name}.json"


def differences(out: Place, wanted: Mapping[str, Checksum]) -> Iterator[Problem]:
    """Files of a store that differ from the manifest's, lack, or are not in it."""
    below = objects_at(out)

    def fault_of(name: str) -> str:
        try:
            found = below.get(name)
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        if found is None:
            return FOLDER if isinstance(out, Path) and (out / name).exists() else "missing"
        return "" if checksum(found.content) == wanted[name] else "differs from what was written"

    yield from (Problem(name, fault) for name, fault in each(below, wanted, fault_of) if fault)
    for name in _names(out):
        if name not in wanted:
            yield Problem(name, FOREIGN)


def checksum(content: bytes) -> Checksum:
    """Size in bytes and SHA-256 of a file's content."""
    return [len(content), hashlib.sha256(content).hexdigest()]


def checksums(below: Objects, names: Iterable[str]) -> dict[str, Checksum]:
    """Checksums of those of the named files that are there."""

    def told(name: str) -> Checksum | None:
        found = below.get(name)
        return None if found is None else checksum(found.content)

    return {name: found for name, found in each(below, names, told) if found is not None}


def write_manifest(
    run: RunDir, facts: Mapping[str, object], files: Mapping[str, Checksum], parts: Mapping[str, str] | None = None
) -> None:
    """Record the checksums of all files of a store that is about to become a finished one.

    Args:
        run: The run.
        facts: The map's record.
        files: Checksum of each file by its path in the store, but for those in parts.
        parts: What `write_part` gave, by name.
    """
    run.write(MANIFEST, {"facts": facts, "files": files, **({"parts": parts} if parts else {})})


def write_part(run: RunDir, name: str, files: Mapping[str, Checksum]) -> str:
    """Record the checksums of some files of a large map; returns CRC-32 of the record."""
    run.write(f"{PARTS}/{name}.json", {"files": files})
    return _crc(files)


def read_manifest(run: RunDir) -> Manifest:
    """Return the run's manifest; empty when there is none or it is damaged, without files when a part of it is."""
    content, fault = run.read(MANIFEST)
    facts, listed, parts = content.get("facts"), content.get("files"), content.get("parts", {})
    if fault or not isinstance(listed, dict) or not isinstance(parts, dict):
        return Manifest()
    return Manifest(facts=facts if isinstance(facts, dict) else {}, load=partial(_with_parts, run, listed, parts))


def _with_parts(run: RunDir, listed: dict[str, Checksum], parts: Mapping[str, str]) -> Mapping[str, Checksum]:
    found = dict(listed)
    for name, crc in parts.items():
        content, fault = run.read(f"{PARTS}/{name}.json")
        files: Any = content.get("files")
        if fault or not isinstance(files, dict) or _crc(files) != crc:
            return {}
        found |= files
    return found


def _crc(files: Mapping[str, Checksum]) -> str:
    return f"{zlib.crc32(canonical(files).encode()):08x}"


def _names(out: Place) -> list[str]:
    if isinstance(out, Path):
        return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_symlink() or not p.is_dir())
    left = {hidden(name) for name in store.ROOT_FILES}  # of a commit that was cut off after the map was there
    return [entry.key for entry in objects_at(out).list() if entry.key not in left]


def block_crc(label: NDArray[Any], confidence: NDArray[Any], score: NDArray[Any] | None = None) -> str:
    """CRC-32 over the block's label bytes, then its confidence bytes, then its score bytes."""
    return f"{pixel_crc(values for values in (label, confidence, score) if values is not None):08x}"


def damaged_blocks(path: Path | Store, plan: Plan, records: dict[str, BlockRecord]) -> Iterator[tuple[str, Problem]]:
    """Names of finished blocks whose pixels do not match their markers, with the damaged chunk where one is unreadable.

    Raises:
        StoreError: The store's metadata are damaged.
    """
    layers = layers_of(store.opened(path))
    for name, record in records.items():
        block = plan.block(*map(int, name.split("_"))) if plan.has(name) else None
        if block is not None and isinstance(found := read_block(layers, block, record.crc), Problem):
            yield name, found


def layers_of(group: zarr.Group) -> list[store.Layer]:
    """Arrays of a store that blocks write."""
    names = ("label", "confidence", "score") if "score" in group else ("label", "confidence")
    return [store.array(group, name) for name in names]


def read_block(layers: list[store.Layer], block: Block, crc: str) -> list[NDArray[Any]] | Problem:
    """Return the pixels of a finished block in each layer, or what is wrong with them."""
    try:
        values = [np.asarray(layer[_region(block.core, layer)]) for layer in layers]
    except StoreError:
        return Problem(_unreadable(layers, block) or f"block {block.name}", "cannot be unpacked")
    return values if block_crc(*values) == crc else Problem(f"block {block.name}", "differs from what was written")


def _region(window: Window, layer: zarr.Array[Any]) -> tuple[slice, ...]:
    place = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
    return (slice(None), *place) if layer.ndim == 3 else place


def chunk_files(layer: zarr.Array[Any], window: Window) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Files that hold a window of a layer, by their paths in the store, and the pixels in each; some may not exist."""
    sizes = layer.shards or layer.chunks
    ranges = [
        range((part.start or 0) // size, -(-(part.stop or length) // size))
        for part, size, length in zip(_region(window, layer), sizes, layer.shape, strict=True)
    ]
    for index in product(*ranges):
        pixels = tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, sizes, strict=True))
        yield f"{layer.path}/{layer.metadata.encode_chunk_key(index)}", pixels


def _unreadable(layers: list[store.Layer], block: Block) -> str | None:
    """Return the first chunk file of a block that cannot be read."""
    for layer in layers:
        for name, pixels in chunk_files(layer, block.core):
            try:
                _ = layer[pixels]
            except StoreError:
                return name
    return None


def plan_of(description: RunDescription) -> Plan:
    """Return the plan of a run."""
    plan, (height, width) = description.plan, description.grid.shape
    assert plan.crops_per_tile is not None  # every `run.json` holds both
    assert plan.block_pitches is not None
    geometry = TileGeometry(crop=plan.crop, stride=plan.stride, crops_per_tile=plan.crops_per_tile)
    return Plan(height=height, width=width, geometry=geometry, block_pitches=plan.block_pitches)
