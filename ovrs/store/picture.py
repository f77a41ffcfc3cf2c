"""Small pictures of a map: class colours as RGB, and the card that a notebook shows."""

from __future__ import annotations

import base64
import html
import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.errors import StoreError
from ovrs.names import shown
from ovrs.store.cautions import cautions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ovrs.store.map import Colour, Map

log = logging.getLogger(__name__)

CARD_SIDE = 320
"""Pixels along the longer side of a card's picture."""
CARD_CLASSES = 24
"""Lines of a card's table; the most frequent classes come first."""


def colourise(labels: NDArray[Any], colours: Sequence[Colour], nodata: int) -> NDArray[np.uint8]:
    """Labels `(y, x)` to RGB `(y, x, 3)`; no data is white."""
    table = np.full((nodata + 1, 3), 255, np.uint8)
    table[: len(colours)] = colours
    return np.asarray(table[labels])


def thumbnail(mapped: Map, side: int) -> NDArray[np.uint8]:
    """RGB `(y, x, 3)` with at most `side` pixels along a side.

    The coarsest level with at least `side` pixels is thinned, so at most a few megabytes are read.
    """
    levels = [mapped.layer("label", factor) for factor in mapped.factors]
    array = next((a for a in reversed(levels) if max(a.shape) >= side), levels[0])
    scale = max(1.0, max(array.shape) / side)
    rows, cols = (((np.arange(round(n / scale)) + 0.5) * scale).astype(int).clip(max=n - 1) for n in array.shape)
    if max(array.shape) <= 4 * side:
        labels = np.asarray(array[:])[np.ix_(rows, cols)]
    else:  # a store without overviews
        labels = np.stack([np.asarray(array[r])[cols] for r in rows])
    return colourise(labels, mapped.colours, mapped.nodata)


def card(mapped: Map) -> str:
    """Return a small picture and the areas as HTML; complete in itself, no script."""
    record, order = mapped.record, sorted(mapped.classes, key=lambda c: -c.percent)
    rows = "".join(
        f'<tr><td><span style="display:inline-block;width:1em;height:.8em;border:1px solid #555;background:{c.hex}">'
        f"</span> <bdi>{html.escape(c.name)}</bdi></td><td>{c.hectares:,.2f}</td><td>{c.percent:.2f}</td></tr>"
        for c in order[:CARD_CLASSES]
    )
    if len(order) > CARD_CLASSES:
        rows += f"<tr><td>and {len(order) - CARD_CLASSES} more classes</td><td></td><td></td></tr>"
    lines = [repr(mapped).strip("<>"), f"scene {record.scene.name}, finished {record.finished}"]
    lines += [f"caution: {text}" for text in cautions(record)]
    if record.holes:
        lines.append(f"INCOMPLETE: {len(record.holes)} blocks are missing and no data")
    about = "<br>".join(html.escape(shown(line)) for line in lines)
    return (
        f"<div><p>{about}</p>{_image(mapped)}"
        f"<table><tr><th>class</th><th>hectares</th><th>percent</th></tr>{rows}</table></div>"
    )


def _image(mapped: Map) -> str:
    from PIL import Image

    try:
        pixels = thumbnail(mapped, CARD_SIDE)
    except StoreError as error:  # a notebook shows the rest
        log.warning("no picture of the map: %s", error)
        return f"<p>no picture: {html.escape(shown(str(error)))}</p>"
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return f'<img alt="map" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'
