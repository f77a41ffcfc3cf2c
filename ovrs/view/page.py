"""A report in one HTML file: overview, legend with areas, options, warnings, provenance. No script, nothing loaded."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import TYPE_CHECKING

from ovrs.export import target
from ovrs.export.product import PAGE
from ovrs.export.quicklook import draw_quicklook
from ovrs.names import shown
from ovrs.store.cautions import cautions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovrs.store.map import Map, MapClass
    from ovrs.store.record import RunRecord

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:24px auto;padding:0 16px;color:#222}
img{max-width:100%;border:1px solid #ccc}
table{border-collapse:collapse}
td,th{padding:3px 12px;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.c{display:inline-block;width:16px;height:12px;border:1px solid #555;margin-right:6px}
.bar{background:#ddd;width:160px;height:10px}.bar i{display:block;height:10px}
.warn{background:#fff3cd;border:1px solid #e0c060;padding:8px 12px}
pre{background:#f6f6f4;padding:10px;overflow-x:auto;font-size:13px}"""


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
    rows = "".join(
        f'<tr><td><span class="c" style="background:{c.hex}"></span><bdi>{_text(c.name)}</bdi></td>'
        f'<td class="n">{c.hectares:,.2f}</td><td class="n">{c.percent:.2f}</td><td><div class="bar">'
        f'<i style="width:{min(100.0, c.percent):.1f}%;background:{c.hex}"></i></div></td></tr>'
        for c in sorted(classes, key=lambda c: -c.percent)
    )
    warned = "".join(f"<li>{_text(w)}</li>" for w in warnings_of(record))
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
    table = "".join(f"<tr><th>{_text(k)}</th><td>{_text(str(v))}</td></tr>" for k, v in about.items())
    details = json.dumps({k: v for k, v in record.dump().items() if k != "classes"}, indent=1)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="ovrs"><title>{_text(name)}</title><style>{STYLE}</style></head><body>\n'
        f"<h1>{_text(name)}</h1>\n"
        + (f'<div class="warn"><strong>Before you use this map</strong><ul>{warned}</ul></div>\n' if warned else "")
        + f'<p><img alt="scene and map" src="data:image/jpeg;base64,{picture}"></p>\n'
        f"<h2>Areas</h2><table><tr><th>Class</th><th>Hectares</th><th>Percent</th><th></th></tr>{rows}</table>\n"
        f"{more}<h2>About</h2><table>{table}</table>\n"
        f"<details><summary>Everything that made this map</summary><pre>{_text(details)}</pre></details>\n</body></html>\n"
    )


def _picture(mapped: Map) -> str:
    stream = io.BytesIO()
    draw_quicklook(mapped).save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()


def _text(value: str) -> str:
    """Escaped for HTML; line ends of preformatted text stay."""
    return html.escape("\n".join(shown(line) if not line.isprintable() else line for line in value.split("\n")))
