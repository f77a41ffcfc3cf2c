"""The windows that a model sees of a tile: their size, their distance and their enlargement.

A crop is the smallest window. A wider window covers k × k crops and is shown at the input size of a crop. Its patches cover k times
the ground along each side. A network is sure of houses at one scale and of fields at another; the mean over scales is surer than
either. Each scale may be shown turned in another way: scores of a patch depend on its orientation, and the mean over turns asks for
no further window.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ovrs.engine.tiling import TileGeometry
from ovrs.errors import OptionError
from ovrs.model.clip.dense import native_size, patch_size
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovrs.model.clip.loading import LoadedModel
    from ovrs.options import ModelOptions

LEAST_ZOOM = 0.5
"""Finer imagery is not shown coarser than this of itself: windows, and with them blocks, would grow out of memory."""
FLIPS = ((-2, -1), (-1,), (-2,))
"""Turned by half, mirrored, mirrored upside down: first, second, third size of wider windows. Quarter turns would change shapes."""


@dataclass(frozen=True)
class Views:
    """The windows of every tile."""

    geometry: TileGeometry
    """The ordinary windows; it decides what a tile is."""
    zoom: float = 1.0
    """How many times these are enlarged before the network sees them."""
    wide: tuple[int, ...] = ()
    """Sides of the wider windows, in crops."""
    turned: bool = False
    """Wider windows are shown upside down or mirrored."""

    @property
    def batch(self) -> int:
        """Windows of a full tile, wider ones included."""
        side = self.geometry.crops_per_tile
        return side**2 + sum(len(_groups(side, k)) ** 2 for k in self.wide)

    def wide_zoom(self, window: Window) -> float:
        """How many times a wider window is enlarged: its longer side to as many input pixels as a crop has.

        At the border of a scene it may cover less than k × k crops; it is shown larger then, rather than with empty margins.
        """
        return self.zoom * self.geometry.crop / max(window.shape)

    def turn(self, size: int) -> tuple[int, ...]:
        """Along which axes of an image windows of this side are flipped; ordinary ones (side 1) are not."""
        if not self.turned or size == 1:
            return ()
        return FLIPS[self.wide.index(size) % len(FLIPS)]

    def wide_windows(self, crops: tuple[Window, ...]) -> list[tuple[int, tuple[Window, ...]]]:
        """Wider windows over the crops of a tile, as (side in crops, windows of one shape).

        A tile of one crop has none, and one with fewer crops than k has windows over all it has.
        """
        rows, cols = sorted({c.row_off for c in crops}), sorted({c.col_off for c in crops})
        if len(crops) == 1:
            return []
        height, width = crops[0].shape
        found: list[tuple[int, tuple[Window, ...]]] = []
        for size in self.wide:
            windows = [
                Window(rows[i], cols[k], rows[j] - rows[i] + height, cols[m] - cols[k] + width)
                for i, j in _groups(len(rows), size)
                for k, m in _groups(len(cols), size)
            ]
            for _, same in groupby(sorted(windows, key=lambda w: w.shape), key=lambda w: w.shape):
                found.append((size, tuple(same)))
        return found


def _groups(count: int, size: int) -> list[tuple[int, int]]:
    """First and last crop of each wider window along an axis of `count` crops: evenly spread, about half over their neighbours.

    What a network says of a patch depends on the window that it is seen in. Side by side, windows would show as boxes.
    """
    if count <= size:
        return [(0, count - 1)]
    number = -(-2 * (count - size) // size) + 1
    starts = [round(i * (count - size) / (number - 1)) for i in range(number)]
    return [(s, s + size - 1) for s in starts]


def choose(options: ModelOptions, model: LoadedModel) -> Views:
    """Return the windows as asked, else as the model recommends, else half-overlapping as in the papers.

    A model may name the ground sizes of pixels that it wants to be shown (`pixel_sizes`, metres, finest first). Where the
    imagery's own is known, zoom and wider windows follow from them; the recommended zoom is the most it is enlarged. Wider
    windows that it wants for any imagery (`wide`) come beside these.

    Raises:
        OptionError: A crop that is no whole number of patches, or wider windows than a tile has crops.
    """
    visual, own = model.clip.visual, model.windows
    patch, native = patch_size(visual), native_size(visual)
    most = float(own.get("zoom", 1.0))
    sizes = own.get("pixel_sizes", ()) if options.pixel_size else ()
    zoom = options.zoom or (max(LEAST_ZOOM, min(most, options.pixel_size / sizes[0])) if sizes else most)
    crop = options.crop or max(1, round(native / zoom))
    if crop % patch and zoom == 1:
        raise OptionError(
            f"model.crop must be a multiple of the patch size {patch}, got {crop}; the nearest is {round(crop / patch) * patch or patch}"
        )
    seen = max(1, round(crop * zoom / patch)) * patch  # whole patches
    asked = bool(options.crop or options.zoom)
    stride = options.stride or _stride(own, crop, max(1, round(native / most)), asked)
    views = Views(TileGeometry(crop=crop, stride=stride), seen / crop)
    wide = options.wide
    if wide is None:
        wide = () if asked else _recommended(views, options.pixel_size, own.get("wide", ()), sizes[1:])
    if wide and max(wide) > views.geometry.crops_per_tile:
        raise OptionError(f"model.wide: a tile has {views.geometry.crops_per_tile} windows a side, got {max(wide)}")
    turned = bool(own.get("turned")) if options.turned is None else options.turned
    if options.turned and not wide:
        raise OptionError(
            "model.turned shows wider windows turned, and there are none: --set model.wide=2 asks for some"
        )
    return Views(views.geometry, views.zoom, tuple(wide), turned and bool(wide))


def _stride(own: Mapping[str, Any], crop: int, usual_crop: int, asked: bool) -> int:
    """As the model recommends for its usual crop, in proportion for another; half the crop for windows asked for."""
    if asked or "stride" not in own:
        return crop // 2
    return max(1, round(own["stride"] * crop / usual_crop))


def _recommended(
    views: Views, pixel_size: float | None, always: tuple[int, ...], wanted: tuple[float, ...]
) -> tuple[int, ...]:
    """Sides, in crops, of the wider windows for any imagery, and of those whose pixels come nearest to ground sizes."""
    g, sides = views.geometry, set(always)
    for size in wanted:
        assert pixel_size is not None
        sides.add(round((size * views.zoom / pixel_size * g.crop - g.crop) / g.stride + 1))
    return tuple(sorted({min(side, g.crops_per_tile) for side in sides} - {0, 1}))
