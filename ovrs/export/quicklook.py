"""A picture for people: the scene, its map and a legend with areas, side by side."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ovrs import __version__
from ovrs.errors import OvrsError
from ovrs.export import target
from ovrs.export.product import PICTURE, Product
from ovrs.names import shown
from ovrs.store.cautions import SKETCH, is_sketch
from ovrs.store.picture import thumbnail

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ovrs.store.map import Colour, Map, MapClass
    from ovrs.store.record import RunRecord

log = logging.getLogger(__name__)

_MARGIN, _LINE, _LEGEND_WIDTH = 16, 26, 290
LEGEND_LIMIT = 60
"""Classes in the legend."""


def write_quicklook(mapped: Map, out: Path, side: int = 900, *, overwrite: bool = False) -> Product:
    """Draw a map as a PNG, each panel at most `side` pixels.

    The scene panel is left out, with a warning, when the source raster is no longer where it was. A legend of more
    than `LEGEND_LIMIT` classes lists the most frequent ones and counts the others.

    Raises:
        OptionError: `out` may not be replaced (see `target.check`).
        StoreError: The map is damaged, or `out` cannot be written.
    """
    target.check(mapped, out, PICTURE, overwrite=overwrite)
    picture = draw_quicklook(mapped, side)
    mark = PngInfo()
    mark.add_text("Software", f"ovrs {__version__}")
    with target.replaced(out) as temporary:
        picture.save(temporary, format="PNG", pnginfo=mark)
    return Product(path=out, kind=PICTURE)


def draw_quicklook(mapped: Map, side: int = 900) -> Image.Image:
    """Draw the picture of `write_quicklook`, RGB."""
    map_panel = thumbnail(mapped, side)
    panels = [map_panel]
    try:
        rgb = np.moveaxis(mapped.scene().decimated(max(map_panel.shape[:2])).rgb, 0, -1)
        panels.insert(0, np.asarray(Image.fromarray(rgb).resize((map_panel.shape[1], map_panel.shape[0]))))
    except OvrsError as error:
        log.warning("the quicklook shows the map alone: %s", error)
    return _compose(panels, mapped.classes, mapped.record)


def _compose(panels: list[NDArray[np.uint8]], classes: Sequence[MapClass], record: RunRecord) -> Image.Image:
    font, bold = ImageFont.load_default(15), ImageFont.load_default(18)
    height, width = panels[0].shape[:2]
    entries = _legend_entries(classes)
    total = _MARGIN + sum(p.shape[1] + _MARGIN for p in panels) + _LEGEND_WIDTH
    canvas = Image.new("RGB", (total, max(height, 130 + _LINE * len(entries)) + 2 * _MARGIN + 24), "white")
    draw = ImageDraw.Draw(canvas)
    x = _MARGIN
    for title, panel in zip(("scene", "map") if len(panels) == 2 else ("map",), panels, strict=True):
        draw.text((x, 8), title, fill="black", font=bold)
        canvas.paste(Image.fromarray(panel), (x, _MARGIN + 20))
        x += width + _MARGIN
    _scale_bar(draw, x - width - _MARGIN, _MARGIN + 20 + height, width, record)
    y = _MARGIN + 20
    for text, colour in entries:
        if colour is not None:
            draw.rectangle((x, y, x + 22, y + 16), fill=colour, outline="black")
        draw.text((x + 30, y), _fitting(text, font, _LEGEND_WIDTH - 34), fill="black", font=font)
        y += _LINE
    lines = [
        shown(record.scene.name),
        f"grid {record.pixel_size_m[0]:.3g} m  EPSG:{record.grid.epsg or '-'}",
        f"{record.model.model}, {record.model.method}",
    ]
    if is_sketch(record):
        lines.append(SKETCH)
    if record.composed_prompts:
        lines.append("composed prompts: " + ", ".join(map(shown, record.composed_prompts)))
    if record.asked_by_name:
        lines.append("asked for by name alone: " + ", ".join(map(shown, record.asked_by_name)))
    if record.holes:
        lines.append(f"INCOMPLETE: {len(record.holes)} blocks missing")
    for i, line in enumerate(lines):
        draw.text((x, y + 12 + 22 * i), line[:40], fill="#444444", font=font)
    return canvas


def _legend_entries(classes: Sequence[MapClass]) -> list[tuple[str, Colour | None]]:
    """Lines of the legend with their colours; without one where classes are left out."""
    lines: list[tuple[str, Colour | None]] = []
    listed = list(classes)
    if len(classes) > LEGEND_LIMIT:
        listed = sorted(classes, key=lambda c: -c.percent)[:LEGEND_LIMIT]
    for entry in listed:
        # a long name is cut, so that its numbers stay in the picture
        name = entry.name if len(entry.name) <= 16 else f"{entry.name[:15]}…"
        lines.append((f"{name}  {entry.percent:.1f} %  {entry.hectares:.2f} ha", entry.colour))
    if len(classes) > LEGEND_LIMIT:
        lines.append((f"and {len(classes) - LEGEND_LIMIT} more classes", None))
    return lines


def _fitting(text: str, font: Any, width: float) -> str:
    """`text`, cut where it would be wider than `width` pixels."""
    while text and font.getlength(text) > width:
        text = f"{text[: max(0, len(text) - 4)]}…" if len(text) > 4 else ""
    return text


def _scale_bar(draw: ImageDraw.ImageDraw, left: int, bottom: int, width: int, record: RunRecord) -> None:
    """Draw a round length in metres and a north arrow over the lower left corner of the map; the grid is north-up."""
    metres = record.pixel_size_m[0] * record.grid.shape[1] / width  # of one pixel of the picture
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
    """Return the largest of 1, 2, 5 times a power of ten that is not above `metres`."""
    power = 10.0 ** np.floor(np.log10(max(metres, 1e-6)))
    return float(power * max(f for f in (1, 2, 5) if f * power <= max(metres, 1e-6)))
