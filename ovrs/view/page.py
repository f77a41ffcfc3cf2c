"""A report in one HTML file: overview, legend with areas, options, warnings, provenance. No script, nothing loaded."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import TYPE_CHECKING, Any

from ovrs.export import target
from ovrs.export.cog import legend
from ovrs.export.product import PAGE
from ovrs.export.quicklook import draw_quicklook
from ovrs.names import shown
from ovrs.store import layout as store

if TYPE_CHECKING:
    from pathlib import Path

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:24px auto;padding:0 16px;color:#222}
img{max-width:100%;border:1px solid #ccc}
table{border-collapse:collapse}
td,th{padding:3px 12px;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.c{display:inline-block;width:16px;height:12px;border:1px solid #555;margin-right:6px}
.bar{background:#ddd;width:160px;height:10px}.bar i{display:block;height:10px}
.warn{background:#fff3cd;border:1px solid #e0c060;padding:8px 12px}
pre{background:#f6f6f4;padding:10px;overflow-x:auto;font-size:13px}"""


def write_report(path: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the report of a finished map.

    Args:
        path: `NAME.zarr`.
        out: `NAME.html`; appears when it is complete.
        overwrite: Replace also a file that `ovrs` did not write.

    Raises:
        OptionError: `out` may not be replaced (see `target.check`).
        StoreError: The map is not finished, or `out` cannot be written.
    """
    target.check(path, out, PAGE, overwrite=overwrite)
    group = store.open_complete(path)
    colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in legend(group)[1]]
    target.write_text(out, _page(path.name, store.facts(group), colours, _picture(path)))
    return out


def warnings_of(facts: dict[str, Any]) -> list[str]:
    """What a reader should know before trusting the map."""
    found = []
    if facts.get("holes"):
        found.append(f"{len(facts['holes'])} blocks are missing and shown as no data: {', '.join(facts['holes'][:10])}")
    if facts.get("composed_prompts"):
        found.append(
            f"The descriptions of these classes are composed from their names: {', '.join(facts['composed_prompts'])}"
        )
    if facts.get("asked_by_name"):
        found.append(f"No library knows these classes; they are asked for by name: {', '.join(facts['asked_by_name'])}")
    if facts.get("aoi_note"):
        found.append(str(facts["aoi_note"]))
    if "resampled" in str(facts.get("grid_note")):
        found.append(str(facts["grid_note"]))
    if facts["model"].get("model") == "sam3-tiny":
        found.append("The model has random weights; the map means nothing")
    if facts["model"].get("prior_reason") and facts["model"].get("prior_weight_used") == 0:
        found.append(f"The semantic prior is off: {facts['model']['prior_reason']}")
    events = {k: v for k, v in facts.get("tile_events", {}).items() if k != "adapted"}
    if events:
        found.append("Tiles reported: " + ", ".join(f"{k} ({v})" for k, v in sorted(events.items())))
    return found


def _page(name: str, facts: dict[str, Any], colours: list[str], picture: str) -> str:
    rows = "".join(
        f'<tr><td><span class="c" style="background:{colour}"></span><bdi>{_text(shown(c["name"]))}</bdi></td>'
        f'<td class="n">{c["hectares"]:,.2f}</td><td class="n">{c["percent"]:.2f}</td><td><div class="bar">'
        f'<i style="width:{min(100.0, c["percent"]):.1f}%;background:{colour}"></i></div></td></tr>'
        for c, colour in sorted(zip(facts["classes"], colours, strict=True), key=lambda pair: -pair[0]["percent"])
    )
    warned = "".join(f"<li>{_text(w)}</li>" for w in warnings_of(facts))
    about = {
        "Scene": facts["scene"]["name"],
        "Grid": f"{facts['grid']['shape'][1]} × {facts['grid']['shape'][0]} px of {facts['pixel_size_m'][0]:.3g} m",
        "CRS": f"EPSG:{facts['grid']['epsg']}" if facts["grid"]["epsg"] else "see below",
        "Model": facts["model"]["model"],
        "Method": facts["model"]["method"],
        "Weights (SHA-256)": facts["model"].get("weights", "–"),
        "Mean confidence": facts["mean_confidence"],
        "Blocks": facts["blocks"],
        "Computing time": f"{facts['seconds']} s",
        "Finished": facts["finished"],
        "ovrs": facts["version"],
    }
    table = "".join(f"<tr><th>{_text(k)}</th><td>{_text(str(v))}</td></tr>" for k, v in about.items())
    details = json.dumps({k: v for k, v in facts.items() if k != "classes"}, indent=1, default=str)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="ovrs"><title>{_text(name)}</title><style>{STYLE}</style></head><body>\n'
        f"<h1>{_text(name)}</h1>\n"
        + (f'<div class="warn"><strong>Before you use this map</strong><ul>{warned}</ul></div>\n' if warned else "")
        + f'<p><img alt="scene and map" src="data:image/jpeg;base64,{picture}"></p>\n'
        f"<h2>Areas</h2><table><tr><th>Class</th><th>Hectares</th><th>Percent</th><th></th></tr>{rows}</table>\n"
        f"<h2>About</h2><table>{table}</table>\n"
        f"<details><summary>Everything that made this map</summary><pre>{_text(details)}</pre></details>\n</body></html>\n"
    )


def _picture(path: Path) -> str:
    stream = io.BytesIO()
    draw_quicklook(path).save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()


def _text(value: str) -> str:
    """Escaped for HTML; line ends of preformatted text stay."""
    return html.escape("\n".join(shown(line) if not line.isprintable() else line for line in value.split("\n")))
