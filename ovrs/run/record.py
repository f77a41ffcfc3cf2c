"""The record of a run: what went in (`run.json`) and what came out (the store's `ovrs` attribute)."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ovrs import __version__
from ovrs.encoding import CONFIDENCE_SCALE
from ovrs.provenance import NUMERICS, canonical, digest, versions
from ovrs.redact import cleaned
from ovrs.run import stages
from ovrs.run.adaptation import facts_of
from ovrs.run.place import kinds
from ovrs.scene.grid import has_ground, pixel_size_m
from ovrs.store.record import ClassArea, NearTie, RunDescription, RunRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ovrs.run.job import Job
    from ovrs.run.rundir import BlockRecord


_TOLD_FROM = 0.25
"""Share of a class's counted pixels from which a near tie stands in the record."""
_HINTS = ("name", "version", "acquired")
"""Facts about the file that do not make another scene of it: what it is called, its times, its tag."""


_TOLD = ("licence", "deviations")
"""Facts about the model that change no number: they stand in the record and do not enter the digest."""


def describe(job: Job, uri: str | Path) -> RunDescription:
    """Content of `run.json`: inputs, options, versions, and the digest that decides whether a run may be continued."""
    box, scene, vocabulary = job.scene.geobox, job.scene, job.spec.vocabulary
    grid = {
        "crs": None if box.crs is None else box.crs.to_wkt(),
        "epsg": None if box.crs is None else box.crs.epsg,
        "shape": list(box.shape),
        "transform": [float(v) for v in box.affine[:6]],
        "aoi": scene.aoi,
    }
    radiometry = {
        "bands": scene.bands,
        "nodata": None if scene.nodata is None else repr(scene.nodata),
        "stretch": vars(scene.stretch) if scene.stretch else None,
    }
    plan = {
        "crop": job.plan.geometry.crop,
        "stride": job.plan.geometry.stride,
        "crops_per_tile": job.plan.geometry.crops_per_tile,
        "block_pitches": job.plan.block_pitches,
    }
    parts = {
        "scene": {k: v for k, v in scene.source.items() if k not in _HINTS},
        "grid": grid,
        "radiometry": {**radiometry, **job.options.scene.decisive()},
        "vocabulary": vocabulary.digest(),
        "model": {k: v for k, v in job.facts.items() if k not in _TOLD},
        "rule": job.rule.facts(),
        "plan": {**plan, **job.options.run.decisive(), **({"shards": True} if job.shard else {})},
        "code": NUMERICS,
    }
    if job.places is not None:
        parts["examples"] = job.places.digest
    own: Any = scene.source["transform"]
    note = "pixels resampled onto a north-up grid" if scene.warp else "the source's own pixels"
    description = {
        "version": __version__,
        "uri": str(uri),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "scene": scene.source,
        "grid": grid,
        "grid_note": note + (f" ({scene.resampling})" if scene.warp else ""),
        "aoi_note": scene.aoi_note,
        "pixel_size_m": [round(v, 6) for v in pixel_size_m(box)],
        "metres_on_ground": has_ground(box),
        "source_rotated": bool(own[1] or own[3]),
        "radiometry": radiometry,
        "plan": plan,
        "model": dict(job.facts),
        "rule": job.rule.facts(),
        "composed_prompts": list(vocabulary.composed_classes),
        "asked_by_name": list(vocabulary.unknown_classes),
        "vocabulary": vocabulary.model_dump(mode="json"),
        "options": job.options.model_dump(mode="json"),
        "versions": versions(),
        "numerics": NUMERICS,
        "digest": digest(parts),
    }
    when = job.options.scene.acquired or scene.source.get("acquired")
    if when is not None:
        description["acquired"] = when
    return RunDescription.model_validate(cleaned(description))


def summarise(job: Job, records: dict[str, BlockRecord], holes: list[str]) -> RunRecord:
    """Return the description plus results summed over the markers: areas, confidence, events, holes."""
    names = job.spec.vocabulary.class_names
    pixels, areas = [0] * len(names), [0.0] * len(names)
    events: dict[str, int] = {}
    ties: Counter[str] = Counter()
    for record in records.values():
        for key, count in record.histogram.items():
            pixels[int(key)] += count
            areas[int(key)] += record.areas_m2[key]
        ties.update(record.ties)
        for event, count in record.events.items():
            events[event] = events.get(event, 0) + count
    total, ground = sum(pixels), sum(areas)
    confidence = sum(r.confidence_sum for r in records.values())
    mixed, spent = kinds(job.run_dir), stages.seconds(records.values())
    found = {
        **job.run_dir.description().dump(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(sum(r.seconds for r in records.values()), 1),
        "stages": spent,
        "mpx_per_second": stages.rates(spent, total),
        "held_up_by": stages.slowest(spent),
        "blocks": job.plan.block_count,
        "holes": holes,
        **({"mixed_workers": mixed} if len(mixed) > 1 else {}),
        "tile_events": events,
        "scene_adaptation": None if job.spec.state is None else facts_of(job.spec.state),
        "valid_pixels": total,
        "mean_confidence": round(confidence / (CONFIDENCE_SCALE * total), 4) if total else None,
        "classes": [
            ClassArea(
                name=name,
                pixels=count,
                hectares=round(area / 1e4, 4),
                percent=round(100 * area / ground, 3) if ground else 0.0,
            )
            for name, count, area in zip(names, pixels, areas, strict=True)
        ],
        **({"near_ties": _near_ties(ties, names)} if ties else {}),
    }
    return RunRecord.model_validate(found)


def _near_ties(ties: Mapping[str, int], names: Sequence[str]) -> list[NearTie]:
    """Pairs that are worth telling, the closest first, of counts as `ovrs.engine.ties` gives them."""
    found = []
    for key, count in ties.items():
        winner, _, second = key.partition("_")
        if second and count >= _TOLD_FROM * ties[winner]:
            percent = round(100 * count / ties[winner], 1)
            pair = (names[int(winner)], names[int(second)])
            found.append(NearTie(name=pair[0], second=pair[1], percent=percent, pixels=ties[winner]))
    return sorted(found, key=lambda tie: (-tie.percent, tie.name, tie.second))


def settled(record: RunRecord, before: Mapping[str, object]) -> dict[str, object]:
    """Return the attribute `ovrs` of a map. The facts of an earlier finish stay, with their times, where nothing but times would change."""
    clock, now = ("finished", "seconds", "stages", "mpx_per_second", "held_up_by"), record.dump()
    same = canonical({**now, **dict.fromkeys(clock)}) == canonical({**before, **dict.fromkeys(clock)})
    return dict(before) if same else now
