"""What people read about a run: progress, status, provenance. Loads no model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovrs.objects.address import is_there
from ovrs.run import stages
from ovrs.run.rundir import RunDir
from ovrs.store import layout as store
from ovrs.store.cautions import cautions

if TYPE_CHECKING:
    from ovrs.objects.address import Place
    from ovrs.store.map import Map
    from ovrs.store.record import RunRecord


@dataclass(frozen=True)
class Status:
    """State of a run."""

    complete: bool
    text: str
    facts: dict[str, object]
    """The same for machines: blocks by state, seconds of work, failed blocks with their reasons."""


def status_of(out: Place) -> Status:
    """Blocks done and failed, from the markers on disk; of a finished map without its run directory, from its record.

    Raises:
        StoreError: No run was begun for `out`, and no map is there.
    """
    run = RunDir(out)
    if not run.exists and is_there(out):
        return _of_a_copy(out, store.facts(store.open_complete(out)))
    description, markers = run.description(), run.markers()
    records = {name: record for name, record in markers.items() if record is not None}
    damaged = [name for name, record in markers.items() if record is None]
    from ovrs.run.verify import plan_of

    total = plan_of(description).block_count
    done = [r for r in records.values() if r.finished]
    failed = [r for r in records.values() if not r.finished]
    complete = is_there(out)
    state = "complete" if complete else ("ready to be finished" if len(done) == total else "incomplete, resumable")
    lines = [
        f"{out}: {state}",
        (
            f"{len(done)}/{total} blocks done ({sum(r.status == 'empty' for r in done)} without valid pixels), {len(failed)} failed, "
            f"{sum(r.seconds for r in done):.0f} s of work"
        ),
    ]
    pixels, spent = sum(sum(r.histogram.values()) for r in done), stages.seconds(done)
    lines += [f"  {told}" for told in [stages.line(spent, pixels)] if told]
    lines += [f"  failed {r.name} (attempt {r.attempt}): {r.reason}" for r in failed]
    lines += [f"  damaged marker {name}: its block is computed again" for name in damaged]
    facts = {
        "map": str(out),
        "state": state.split(",")[0],
        "complete": complete,
        "blocks": total,
        "done": len(done),
        "empty": sum(r.status == "empty" for r in done),
        "failed": [{"block": r.name, "attempt": r.attempt, "error": r.error, "reason": r.reason} for r in failed],
        "damaged_markers": damaged,
        "pixels": pixels,
        "seconds": round(sum(r.seconds for r in done), 3),
        "stages": spent,
        "mpx_per_second": stages.rates(spent, pixels),
        "held_up_by": stages.slowest(spent),
        "workers": dict(Counter(r.worker for r in done if r.worker)),
    }
    return Status(complete, "\n".join(lines), facts)


def _of_a_copy(out: Place, found: dict[str, Any]) -> Status:
    """State of a map whose run directory is elsewhere, such as a published one."""
    holes, total = list(found["holes"]), int(found["blocks"])
    text = f"{out}: complete, a copy without its run directory\n{total - len(holes)}/{total} blocks done"
    facts = {"map": str(out), "state": "complete", "complete": True, "blocks": total, "done": total - len(holes)}
    failed = [{"block": name, "attempt": None, "error": "", "reason": "missing"} for name in holes]
    return Status(True, "\n".join([text, *(f"  missing {name}" for name in holes)]), {**facts, "failed": failed})


def area_lines(record: RunRecord) -> list[str]:
    """One line per class with hectares and percent."""
    width = max([5, *(len(c.name) for c in record.classes)])
    lines = [f"{'class':{width}}  {'hectares':>12}  {'percent':>7}"]
    lines += [f"{c.name:{width}}  {c.hectares:12.2f}  {c.percent:7.2f}" for c in record.classes]
    if record.holes:
        lines.append(f"INCOMPLETE: {len(record.holes)} blocks are missing and no data: {', '.join(record.holes)}")
    return lines


def _whose(provenance: dict[str, str]) -> str:
    """Whose words were asked, of a run with a preset."""
    if "preset" not in provenance:
        return ""
    sentences = f"; sentences: {provenance['sentences']}" if "sentences" in provenance else ""
    return f"; preset {provenance['preset']}; words: {provenance['words']}{sentences}"


_APART = ("model", "weights", "licence", "deviations")
"""Facts about the model with lines of their own."""


def info_of(mapped: Map, *, as_json: bool = False) -> str:
    """Provenance and content of a map as text or JSON."""
    record = mapped.record
    if as_json:
        return json.dumps(record.dump(), indent=1)
    grid, model, scene, size = record.grid, record.model, record.scene, record.pixel_size_m
    told = model.dump()
    stretch = record.radiometry.stretch
    lines = [
        f"map        {mapped.place}",
        f"scene      {record.uri}  {scene.width}x{scene.height}, {scene.count} bands {scene.dtypes[0]}",
        f"grid       {grid.shape[1]}x{grid.shape[0]} px, {size[0]:.4g} x {size[1]:.4g} m, EPSG:{grid.epsg}; {record.grid_note}",
        f"bands      {','.join(map(str, record.radiometry.bands))}; stretch {'none' if stretch is None else stretch.dump()}",
        f"model      {model.model}  weights sha256 {str(model.weights)[:16]}…, licence {model.licence or 'not told'}",
        "method     " + ", ".join(f"{k}={v}" for k, v in told.items() if k not in _APART),
        *(f"deviates   {line}" for line in model.deviations or ()),
        f"rule       background {record.rule.background}, threshold {record.rule.threshold}"
        + (", confidence as a share of all scores" if record.rule.shares else ""),
        f"run        {record.begun} to {record.finished}, {record.blocks} blocks, {record.seconds} s, ovrs {record.version}",
        *([f"stages     {pace}"] if (pace := stages.line(record.stages or {}, record.valid_pixels)) else []),
        f"tiles      {', '.join(f'{k} {v}' for k, v in sorted(record.tile_events.items())) or '-'}",
        f"versions   {', '.join(f'{k} {v}' for k, v in record.versions.items())}",
        f"digest     {', '.join(f'{k} {v}' for k, v in record.digest.items())}",
        f"confidence {record.mean_confidence} mean over {record.valid_pixels} valid pixels",
        *(f"caution    {text}" for text in cautions(record)),
        "",
        *area_lines(record),
        "",
        f"prompts    vocabulary {record.vocabulary.name}{_whose(record.vocabulary.provenance)}",
    ]
    for entry in record.vocabulary.classes:
        asked = ", ".join(entry.asked or [entry.name, *entry.synonyms])
        name = f"{entry.name}: " if entry.asked else ""
        lines.append(f"  {name}{asked}  [{entry.prompt_source}]")
        lines += [f"      {sentence}" for sentence in entry.descriptions]
    return "\n".join(lines)
