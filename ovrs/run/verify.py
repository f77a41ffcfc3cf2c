"""Whether a store still holds what its run wrote. Names every file that differs; changes nothing.

A finished store is compared with `NAME.run/manifest.json`: size and SHA-256 of each file. An unfinished one has no
manifest; its blocks are compared with the CRC-32 in their markers.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.engine.tiling import Plan, TileGeometry
from ovrs.errors import DamagedBlocksError, StoreError
from ovrs.objects.address import Place, objects_at
from ovrs.objects.many import each
from ovrs.run import adaptation
from ovrs.run.rundir import RunDir
from ovrs.store import layout as store
from ovrs.store.keys import hidden
from ovrs.store.target import target_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import zarr
    from numpy.typing import NDArray
    from zarr.abc.store import Store

    from ovrs.engine.tiling import Block
    from ovrs.objects.interface import Objects
    from ovrs.run.rundir import BlockRecord
    from ovrs.store.record import RunDescription
    from ovrs.store.target import Target

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FOREIGN = "foreign, not written by this run"
FOLDER = "a folder in place of a file"


Checksum = list[int | str]
"""Size of a file in bytes, and SHA-256."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished run knows of its map: content of `manifest.json`."""

    facts: Mapping[str, object] = field(default_factory=dict)
    """The map's own record as JSON. Empty: unknown."""
    files: Mapping[str, Checksum] = field(default_factory=dict)
    """Checksum of every file by its path in the store. Empty: unknown."""

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


def write_manifest(run: RunDir, below: Objects, facts: Mapping[str, object]) -> None:
    """Record the checksums of all files of a store that is about to become a finished one."""

    def told(name: str) -> Checksum:
        found = below.get(name)
        if found is None:
            raise StoreError(f"{name} of {run.store} vanished while the run was finished; the same command goes on")
        return checksum(found.content)

    names = [entry.key for entry in below.list()]
    run.write(MANIFEST, {"facts": facts, "files": dict(each(below, names, told))})


def read_manifest(run: RunDir) -> Manifest:
    """Return the run's manifest; empty when there is none or it is damaged."""
    content, fault = run.read(MANIFEST)
    facts, listed = content.get("facts"), content.get("files")
    if fault or not isinstance(listed, dict):
        return Manifest()
    return Manifest(facts=facts if isinstance(facts, dict) else {}, files=listed)


def _names(out: Place) -> list[str]:
    if isinstance(out, Path):
        return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_symlink() or not p.is_dir())
    left = {hidden(name) for name in store.ROOT_FILES}  # of a commit that was cut off after the map was there
    return [entry.key for entry in objects_at(out).list() if entry.key not in left]


def block_crc(label: NDArray[Any], confidence: NDArray[Any], score: NDArray[Any] | None = None) -> str:
    """CRC-32 over the block's label bytes, then its confidence bytes, then its score bytes."""
    crc = 0
    for values in (label, confidence, score):
        if values is not None:
            crc = zlib.crc32(np.ascontiguousarray(values).data, crc)
    return f"{crc:08x}"


def damaged_blocks(path: Path | Store, plan: Plan, records: dict[str, BlockRecord]) -> Iterator[tuple[str, Problem]]:
    """Names of finished blocks whose pixels do not match their markers, with the damaged chunk where one is unreadable.

    Raises:
        StoreError: The store's metadata are damaged.
    """
    group = store.opened(path)
    layers = {name: store.array(group, name) for name in ("label", "confidence")}
    if "score" in group:
        layers["score"] = store.array(group, "score")
    known = set(plan.block_names())
    for name, record in records.items():
        if name not in known:
            continue
        block = plan.block(*map(int, name.split("_")))
        try:
            values = [np.asarray(layer[_region(block, layer)]) for layer in layers.values()]
        except StoreError:
            yield name, Problem(_unreadable(layers, block) or f"block {name}", "cannot be unpacked")
            continue
        if block_crc(*values) != record.crc:
            yield name, Problem(f"block {name}", "differs from what was written")


def require_whole(out: Place, target: Target, run: RunDir, plan: Plan) -> None:
    """Refuse to finish with blocks that no longer hold what was written; their markers are removed.

    Raises:
        DamagedBlocksError: Names the blocks, which then count as not computed.
    """
    records = {name: r for name, r in run.records().items() if r.finished}
    damaged = list(damaged_blocks(target.unfinished(), plan, records))
    for name, problem in damaged:
        log.warning("block %s is computed again: %s", name, problem)
        run.forget(name)
    if damaged:
        names = [name for name, _ in damaged]
        raise DamagedBlocksError(
            f"{len(names)} finished blocks of {out} no longer hold what was written "
            f"({', '.join(names[:5])}{', …' if len(names) > 5 else ''}); `ovrs resume {out}` computes them again",
            names,
        )


def _region(block: Block, layer: zarr.Array[Any]) -> tuple[slice, ...]:
    core = block.core
    place = (slice(core.row_off, core.row_end), slice(core.col_off, core.col_end))
    return (slice(None), *place) if layer.ndim == 3 else place


def _unreadable(layers: dict[str, store.Layer], block: Block) -> str | None:
    """Return the first chunk file of a block that cannot be read."""
    for name, layer in layers.items():
        sizes = layer.shards or layer.chunks
        ranges = [
            range((part.start or 0) // size, -(-(part.stop or length) // size))
            for part, size, length in zip(_region(block, layer), sizes, layer.shape, strict=True)
        ]
        for place in np.ndindex(*(len(r) for r in ranges)):
            index = tuple(r[i] for r, i in zip(ranges, place, strict=True))
            try:
                _ = layer[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, sizes, strict=True))]
            except StoreError:
                return f"{name}/{layer.metadata.encode_chunk_key(index)}"
    return None


def plan_of(description: RunDescription) -> Plan:
    """Return the plan of a run."""
    plan, (height, width) = description.plan, description.grid.shape
    assert plan.crops_per_tile is not None  # every `run.json` holds both
    assert plan.block_pitches is not None
    geometry = TileGeometry(crop=plan.crop, stride=plan.stride, crops_per_tile=plan.crops_per_tile)
    return Plan(height=height, width=width, geometry=geometry, block_pitches=plan.block_pitches)
