"""A raster as the engine sees it: a north-up grid, 8-bit RGB windows and a validity mask."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from ovrs.errors import SceneReadError, told
from ovrs.redact import redacted
from ovrs.scene import identity
from ovrs.scene.radiometry import Stretch, to_rgb
from ovrs.scene.reader import environment, open_reader, quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from ovrs.scene.channels import Channels
    from ovrs.scene.grid import Window
    from ovrs.scene.identity import Origin
    from ovrs.scene.reader import Reader, Values


@dataclass(frozen=True, eq=False)
class Pixels:
    """One window of a scene."""

    rgb: NDArray[np.uint8]
    """`(3, height, width)`, 0 where not valid."""
    valid: NDArray[np.bool_]
    """`(height, width)`, True = valid."""


class SceneSource(Protocol):
    """What the engine needs of a scene."""

    @property
    def geobox(self) -> GeoBox:
        """The grid of the scene."""
        ...

    def read(self, window: Window) -> Pixels:
        """Read colours `(3, height, width)` and validity `(height, width)` of a window."""
        ...


@dataclass(frozen=True, kw_only=True)
class RasterScene:
    """Any raster GDAL can read. Thread-safe: each thread opens its own handle. Pickles as its fields."""

    uri: str
    geobox: GeoBox
    channels: Channels
    """Bands and the rule of which pixels are valid."""
    warp: bool
    """True if pixels are resampled; False if they are the file's own, cropped or mirrored."""
    resampling: str
    stretch: Stretch | None
    aoi: str | None
    """The area of interest as WKT in the CRS of the grid."""
    source: dict[str, object]
    """Facts about the file for provenance and digest."""
    aoi_note: str = ""
    """Layer taken, geometries mended or left out; empty where there is nothing to say."""
    origin: Origin | None = None
    """What the file's bytes were when the scene was opened."""

    def __repr__(self) -> str:
        return f"RasterScene({redacted(self.uri)!r})"

    def require_unchanged(self) -> None:
        """Refuse to go on with a file that is no longer the one that was opened (errors as `Origin.require_unchanged`)."""
        if self.origin is not None:
            self.origin.require_unchanged()

    def require_opening(self) -> None:
        """Open the file in this process, reading no pixel.

        Raises:
            SceneReadError: It is not here, or cannot be opened.
        """
        try:
            with environment(self.uri), quiet(), rasterio.open(self.uri):
                return
        except RasterioError as error:
            raise SceneReadError(f"{self.uri} cannot be opened: {told(error)}") from error

    @property
    def bands(self) -> tuple[int, ...]:
        """Numbers of the chosen bands, from 1."""
        return self.channels.bands

    @property
    def nodata(self) -> float | tuple[float | None, ...] | None:
        """No data value of the chosen bands; a tuple where they differ."""
        each = self.channels.nodata
        return each[0] if len({repr(v) for v in each}) == 1 else each

    @cached_property
    def _local(self) -> threading.local:
        return threading.local()

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def read(self, window: Window) -> Pixels:
        """Read one window of the grid.

        Raises:
            SceneReadError: GDAL could not deliver the pixels; the message names file and window.
        """
        bands, valid = self._values(_raster_window(window), None)
        if self.aoi is not None:
            valid &= self._inside(window)
        return self._pixels(bands, valid)

    def _values(self, window: RasterWindow, shape: tuple[int, int] | None) -> Values:
        try:
            with environment(self.uri):
                return self._reader().read(window, shape)
        except RasterioError as error:
            where = f"rows {window.row_off}.. and columns {window.col_off}.. ({window.height} x {window.width})"
            raise SceneReadError(
                f"reading {where} of {self.uri} failed: {told(error)}. Is the file complete and reachable?"
            ) from error

    def _reader(self) -> Reader:
        reader: Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            identity.forget_cached(self.uri)  # another job of this process may have read another scene there
            reader = open_reader(self.uri, self.channels, self.geobox, self.resampling if self.warp else None)
            self._local.reader = reader
        return reader

    def _pixels(self, bands: NDArray[Any], valid: NDArray[np.bool_]) -> Pixels:
        rgb = to_rgb(self.stretch.apply(bands) if self.stretch else bands.astype(np.uint8, copy=False))
        rgb[:, ~valid] = 0
        return Pixels(rgb, valid)

    def _inside(self, window: Window) -> NDArray[np.bool_]:
        from rasterio.features import rasterize
        from shapely import from_wkt

        part = self.geobox[window.row_off : window.row_end, window.col_off : window.col_end]
        inside = rasterize(
            [(from_wkt(self.aoi), 1)], out_shape=window.shape, transform=part.affine, fill=0, dtype="uint8"
        )
        return np.asarray(inside == 1)

    def sample(self, side: int) -> Values:
        """Read stored numbers `(band, y, x)` and validity `(y, x)` of the whole scene, its longer side at most `side` pixels."""
        whole = RasterWindow(0, 0, self.geobox.width, self.geobox.height)
        return self._values(whole, decimated_shape(self.geobox, side))

    def decimated(self, side: int) -> Pixels:
        """Read the whole scene, at most `side` pixels along its longer side (nearest overview; for quicklooks)."""
        return self._pixels(*self.sample(side))

    def decimated_window(self, window: Window, factor: int) -> Pixels:
        """One window with `factor` times fewer pixels per side, at least one (for viewers)."""
        shape = (-(-window.height // factor), -(-window.width // factor))
        return self._pixels(*self._values(_raster_window(window), shape))


def _raster_window(window: Window) -> RasterWindow:
    return RasterWindow(window.col_off, window.row_off, window.width, window.height)


def decimated_shape(geobox: GeoBox, side: int) -> tuple[int, int]:
    """Return height and width of a grid that is scaled to at most `side` pixels along its longer side."""
    factor = max(1.0, max(geobox.height, geobox.width) / side)
    return max(1, round(geobox.height / factor)), max(1, round(geobox.width / factor))
