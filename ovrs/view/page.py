"""A report in one HTML file: overview, legend with areas, options, warnings, provenance. No script, nothing loaded."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING

from ovrs.export import target
from ovrs.export.product import PAGE
from ovrs.export.quicklook import draw_quicklook
from ovrs.export.rendering import rendered
from ovrs.store.cautions import cautions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovrs.store.map import Map, MapClass
    from ovrs.store.record import RunRecord


def write_report(mapped: Map, out: Path, *, more: str = "", overwrite: bool = False) -> Path:
    """Write the report of a map.

    Args:
        mapped: The map.
        out: `NAME.html`; appears when it is complete.
        more: HTML between the areas and what made the map, such as `ovrs.assess.pages.section`.
        overwrite: Replace also a file that `ovrs` did not write.

    Raises:
        OptionError: `out` may not be replaced (see `target.check`).
        StoreError: The map is damaged, or `out` cannot be written.
    """
    target.check(mapped, out, PAGE, overwrite=overwrite)
    target.write_text(out, _page(mapped.name, mapped.record, mapped.classes, _picture(mapped), more))
    return out


def warnings_of(record: RunRecord) -> list[str]:
    """Return what a reader should know before trusting the map."""
    found = cautions(record)
    if record.holes:
        found.append(f"{len(record.holes)} blocks are missing and shown as no data: {', '.join(record.holes[:10])}")
    if record.composed_prompts:
        found.append(
            f"The descriptions of these classes are composed from their names: {', '.join(record.composed_prompts)}"
        )
    if record.asked_by_name:
        found.append(f"No library knows these classes; they are asked for by name: {', '.join(record.asked_by_name)}")
    if record.aoi_note:
        found.append(record.aoi_note)
    if "resampled" in record.grid_note:
        found.append(record.grid_note)
    if record.model.model == "sam3-tiny":
        found.append("The model has random weights; the map means nothing")
    if record.model.prior_reason and record.model.prior_weight_used == 0:
        found.append(f"The semantic prior is off: {record.model.prior_reason}")
    events = {k: v for k, v in record.tile_events.items() if k != "adapted"}
    if events:
        found.append("Tiles reported: " + ", ".join(f"{k} ({v})" for k, v in sorted(events.items())))
    return found


def _page(name: str, record: RunRecord, classes: Sequence[MapClass], picture: str, more: str) -> str:
    about = {
        "Scene": record.scene.name,
        "Grid": f"{record.grid.shape[1]} × {record.grid.shape[0]} px of {record.pixel_size_m[0]:.3g} m",
        "CRS": f"EPSG:{record.grid.epsg}" if record.grid.epsg else "see below",
        "Model": record.model.model,
        "Method": record.model.method,
        "Weights (SHA-256)": record.model.weights or "–",
        "Mean confidence": record.mean_confidence,
        "Blocks": record.blocks,
        "Computing time": f"{record.seconds} s",
        "Finished": record.finished,
        "ovrs": record.version,
    }
    return rendered(
        "report.html",
        title=name,
        warnings=warnings_of(record),
        picture=picture,
        classes=sorted(classes, key=lambda c: -c.percent),
        more=more,
        about=about,
        details=json.dumps({k: v for k, v in record.dump().items() if k != "classes"}, indent=1),
    )


def _picture(mapped: Map) -> str:
    stream = io.BytesIO()
    draw_quicklook(mapped).save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
