"""A picture for people: the scene, its map and a legend with areas, side by side."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ovrs import __version__
from ovrs.engine.decide import label_nodata
from ovrs.errors import OvrsError
from ovrs.export import target
from ovrs.export.cog import legend
from ovrs.export.product import PICTURE, Product
from ovrs.names import shown
from ovrs.options import SceneOptions
from ovrs.scene.opening import open_scene
from ovrs.store import layout as store

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_MARGIN, _LINE, _LEGEND_WIDTH = 16, 26, 290
LEGEND_LIMIT = 60
"""Classes in the legend."""


def write_quicklook(path: Path, out: Path, side: int = 900, *, overwrite: bool = False) -> Product:
    """Draw a finished store as a PNG, each panel at most `side` pixels.

    The scene panel is left out, with a warning, when the source raster is no longer where it was. A legend of more
    than `LEGEND_LIMIT` classes lists the most frequent ones and counts the others.

    Raises:
        OptionError: `out` may not be replaced (see `target.check`).
        StoreError: The store is not finished, or `out` cannot be written.
    """
    target.check(path, out, PICTURE, overwrite=overwrite)
    picture = draw_quicklook(path, side)
    mark = PngInfo()
    mark.add_text("Software", f"ovrs {__version__}")
    with target.replaced(out) as temporary:
        picture.save(temporary, format="PNG", pnginfo=mark)
    return Product(path=out, kind=PICTURE)


def draw_quicklook(path: Path, side: int = 900) -> Image.Image:
    """The picture of `write_quicklook`, RGB."""
    group = store.open_complete(path)
    facts = store.facts(group)
    names, colours = legend(group)
    map_panel = colourise(_small_labels(group, side), colours, label_nodata(len(names)))
    panels = [map_panel]
    try:
        scene = open_scene(facts["uri"], SceneOptions.model_validate(facts["options"]["scene"]))
        rgb = np.moveaxis(scene.decimated(max(map_panel.shape[:2])).rgb, 0, -1)
        panels.insert(0, np.asarray(Image.fromarray(rgb).resize((map_panel.shape[1], map_panel.shape[0]))))
    except OvrsError as error:
        log.warning("the quicklook shows the map alone: %s", error)
    return _compose(panels, names, colours, facts)


def colourise(labels: NDArray[Any], colours: list[tuple[int, int, int]], nodata: int) -> NDArray[np.uint8]:
    """Labels `(y, x)` to RGB `(y, x, 3)`; no data is white."""
    table = np.full((nodata + 1, 3), 255, np.uint8)
    table[: len(colours)] = colours
    return table[labels]


def _small_labels(group: zarr.Group, side: int) -> NDArray[Any]:
    """The coarsest level with at least `side` pixels, thinned to `side`: at most a few megabytes are read."""
    levels = [group, *(group[str(2**k)] for k in range(1, 20) if str(2**k) in group)]
    arrays = [store.array(g, "label") for g in levels if isinstance(g, zarr.Group)]
    array = next((a for a in reversed(arrays) if max(a.shape) >= side), arrays[0])
    scale = max(1.0, max(array.shape) / side)
    rows, cols = (((np.arange(round(n / scale)) + 0.5) * scale).astype(int).clip(max=n - 1) for n in array.shape)
    if max(array.shape) <= 4 * side:
        return np.asarray(array[:])[np.ix_(rows, cols)]
    return np.stack([np.asarray(array[r])[cols] for r in rows])  # a store without overviews


def _compose(
    panels: list[NDArray[np.uint8]], names: list[str], colours: list[tuple[int, int, int]], facts: dict[str, Any]
) -> Image.Image:
    font, bold = ImageFont.load_default(15), ImageFont.load_default(18)
    height, width = panels[0].shape[:2]
    entries = _legend_entries(names, colours, facts)
    total = _MARGIN + sum(p.shape[1] + _MARGIN for p in panels) + _LEGEND_WIDTH
    canvas = Image.new("RGB", (total, max(height, 130 + _LINE * len(entries)) + 2 * _MARGIN + 24), "white")
    draw = ImageDraw.Draw(canvas)
    x = _MARGIN
    for title, panel in zip(("scene", "map") if len(panels) == 2 else ("map",), panels, strict=True):
        draw.text((x, 8), title, fill="black", font=bold)
        canvas.paste(Image.fromarray(panel), (x, _MARGIN + 20))
        x += width + _MARGIN
    _scale_bar(draw, x - width - _MARGIN, _MARGIN + 20 + height, width, facts)
    y = _MARGIN + 20
    for text, colour in entries:
        if colour is not None:
            draw.rectangle((x, y, x + 22, y + 16), fill=colour, outline="black")
        draw.text((x + 30, y), _fitting(text, font, _LEGEND_WIDTH - 34), fill="black", font=font)
        y += _LINE
    lines = [
        shown(facts["scene"]["name"]),
        f"grid {facts['pixel_size_m'][0]:.3g} m  EPSG:{facts['grid']['epsg'] or '-'}",
        f"{facts['model']['model']}, {facts['model']['method']}",
    ]
    if facts.get("composed_prompts"):
        lines.append("composed prompts: " + ", ".join(map(shown, facts["composed_prompts"])))
    if facts.get("asked_by_name"):
        lines.append("asked for by name alone: " + ", ".join(map(shown, facts["asked_by_name"])))
    if facts.get("holes"):
        lines.append(f"INCOMPLETE: {len(facts['holes'])} blocks missing")
    for i, line in enumerate(lines):
        draw.text((x, y + 12 + 22 * i), line[:40], fill="#444444", font=font)
    return canvas


def _legend_entries(
    names: list[str], colours: list[tuple[int, int, int]], facts: dict[str, Any]
) -> list[tuple[str, tuple[int, int, int] | None]]:
    """Lines of the legend with their colours; without one where classes are left out."""
    areas = facts.get("classes") or [None] * len(names)
    lines: list[tuple[str, tuple[int, int, int] | None]] = []
    order = list(range(len(names)))
    if len(names) > LEGEND_LIMIT:
        order = sorted(order, key=lambda i: -areas[i]["percent"] if areas[i] else 0)[:LEGEND_LIMIT]
    for index in order:
        area = areas[index]
        # a long name is cut, so that its numbers stay in the picture
        numbers = f"{area['percent']:.1f} %  {area['hectares']:.2f} ha" if area else ""
        name = names[index] if len(names[index]) <= 16 or not area else f"{names[index][:15]}…"
        lines.append((f"{name}  {numbers}".rstrip(), colours[index]))
    if len(names) > LEGEND_LIMIT:
        lines.append((f"and {len(names) - LEGEND_LIMIT} more classes", None))
    return lines


def _fitting(text: str, font: Any, width: float) -> str:
    """`text`, cut where it would be wider than `width` pixels."""
    while text and font.getlength(text) > width:
        text = f"{text[: max(0, len(text) - 4)]}…" if len(text) > 4 else ""
    return text


def _scale_bar(draw: ImageDraw.ImageDraw, left: int, bottom: int, width: int, facts: dict[str, Any]) -> None:
    """A round length in metres and a north arrow, over the lower left corner of the map; the grid is north-up."""
    metres = facts["pixel_size_m"][0] * facts["grid"]["shape"][1] / width  # of one pixel of the picture
    length = scale_length(metres * width / 4)
    pixels, font = round(length / metres), ImageFont.load_default(14)
    x, y = left + 12, bottom - 16
    draw.rectangle((x - 6, y - 44, x + pixels + 40, y + 10), fill="white", outline="#888888")
    draw.rectangle((x, y - 4, x + pixels, y), fill="black")
    draw.text((x, y - 24), f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m", fill="black", font=font)
    north = x + pixels + 22
    draw.polygon([(north, y - 38), (north - 8, y - 10), (north, y - 16), (north + 8, y - 10)], fill="black")
    draw.text((north - 5, y - 8), "N", fill="black", font=font)


def scale_length(metres: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `metres`."""
    power = 10.0 ** np.floor(np.log10(max(metres, 1e-6)))
    return float(power * max(f for f in (1, 2, 5) if f * power <= max(metres, 1e-6)))
