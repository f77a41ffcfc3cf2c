"""The preview as one picture: a row for each window, a column for the scene and for each setting, legends below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ovrs import __version__
from ovrs.encoding import label_nodata
from ovrs.export import target
from ovrs.export.product import PICTURE
from ovrs.names import shown
from ovrs.store.picture import colourise

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ovrs.preview.sketch import Preview, Sketch

_MARGIN, _LINE, _HEAD = 12, 20, 26
PANEL = 260
"""Longest side of a panel in pixels, of a preview of several windows; of one window it is 640."""
_ONE = 640
_CLASSES = 24
"""Lines of a legend; the most frequent classes come first."""


def check(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that the picture must not replace.

    Raises:
        OptionError: Another suffix than .png, or a file that `ovrs` did not write.
    """
    target.check_alone(out, PICTURE, overwrite=overwrite)


def write(preview: Preview, out: Path) -> Path:
    """Draw the preview as a PNG."""
    mark = PngInfo()
    mark.add_text("Software", f"ovrs {__version__}")
    picture = draw(preview)
    with target.replaced(out) as temporary:
        picture.save(temporary, format="PNG", pnginfo=mark)
    return out


def draw(preview: Preview) -> Image.Image:
    """Return the picture, RGB."""
    side = _ONE if len(preview.windows) == 1 else PANEL
    columns = [("scene", preview.pictures)]
    columns += [(sketch.name, _coloured(sketch)) for sketch in preview.sketches]
    sizes = [_size(picture.shape[:2], side) for picture in preview.pictures]
    lines = max(min(len(s.words.classes), _CLASSES) for s in preview.sketches) + 2
    width = _MARGIN + len(columns) * (side + _MARGIN)
    height = _HEAD + sum(h + _MARGIN for _, h in sizes) + lines * _LINE + _MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for number, (title, panels) in enumerate(columns):
        x, y = _MARGIN + number * (side + _MARGIN), _HEAD
        pen.text((x, 6), _cut(shown(title), font, side), fill="black", font=font)
        for panel, size in zip(panels, sizes, strict=True):
            how = Image.Resampling.NEAREST if number else Image.Resampling.BILINEAR
            canvas.paste(Image.fromarray(panel).resize(size, how), (x, y))
            y += size[1] + _MARGIN
        if number:
            _legend(pen, font, x, y, side, preview.sketches[number - 1])
    return canvas


def _coloured(sketch: Sketch) -> list[NDArray[np.uint8]]:
    nodata = label_nodata(len(sketch.words.classes))
    return [colourise(m.label, sketch.words.colours, nodata) for m in sketch.maps]


def _size(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Width and height of a panel."""
    scale = side / max(shape)
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _legend(pen: Any, font: Any, x: int, y: int, side: int, sketch: Sketch) -> None:
    shares = sketch.shares
    for number in np.argsort(shares)[::-1][:_CLASSES]:
        pen.rectangle((x, y + 2, x + 16, y + 14), fill=tuple(sketch.words.colours[number]), outline="black")
        text = f"{100 * shares[number]:.1f} %  {shown(sketch.words.class_names[number])}"
        pen.text((x + 24, y), _cut(text, font, side - 24), fill="black", font=font)
        y += _LINE
    pen.text((x, y), f"mean confidence {sketch.mean_confidence:.2f}", fill="#444444", font=font)


def _cut(text: str, font: Any, width: float) -> str:
    """`text`, cut where it would be wider than `width` pixels."""
    while len(text) > 1 and font.getlength(text) > width:
        text = f"{text[:-2]}…"
    return text
