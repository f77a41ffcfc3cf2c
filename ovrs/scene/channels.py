"""Which bands of a raster become red, green and blue, and which values of them are no data."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from ovrs.errors import OptionError, SceneReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ovrs.options import SceneOptions

log = logging.getLogger(__name__)

_OTHER_COLOURS = {
    ColorInterp.cyan: "CMYK",
    ColorInterp.magenta: "CMYK",
    ColorInterp.black: "CMYK",
    ColorInterp.hue: "HSL",
    ColorInterp.saturation: "HSL",
    ColorInterp.lightness: "HSL",
    ColorInterp.Y: "YCbCr",
    ColorInterp.Cb: "YCbCr",
    ColorInterp.Cr: "YCbCr",
}

_OPAQUE = (1, 255, 32767, 65535)
"""Alpha of opaque pixels, by type and habit."""
_PROBE = 64
"""Side of a window in pixels."""


@dataclass(frozen=True, kw_only=True)
class Channels:
    """What is read of a raster.

    A pixel is valid if at least one chosen band differs from its nodata value, every mask and the alpha band are above
    zero there, and every chosen band is a finite number.
    """

    bands: tuple[int, ...]
    """One or three band numbers, from 1."""
    alpha: int | None
    """Number of the alpha band; pixels where it is zero are no data."""
    nodata: tuple[float | None, ...]
    """No data value of each chosen band."""
    own_nodata: bool
    """True if the values come from the raster, False if the user gave one."""
    dtype: str
    """A type that holds every chosen band, as NumPy names it."""
    palette: bool = False
    """True if the band holds indices of a colour table, which become red, green and blue before anything else."""
    inverted: tuple[bool, ...] = (False,)
    """True for each band whose low numbers are bright."""
    bits: int = 8
    """Bits in use of each byte of a `uint8` raster."""

    @property
    def shown(self) -> int:
        """Bands that come out: three of a palette."""
        return 3 if self.palette else len(self.bands)

    @property
    def shown_dtype(self) -> str:
        """The dtype of the bands as they are shown; palettes become bytes."""
        return "uint8" if self.palette else self.dtype

    def shared_mask(self, source: Any) -> bool:
        """Whether one mask, in the file or beside it, counts for all bands."""
        flags = source.mask_flag_enums[self.bands[0] - 1]
        own = MaskFlags.nodata not in flags or self.own_nodata
        return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags and own

    def band_mask(self, source: Any, band: int) -> bool:
        """Whether a band has a mask that is its own and more than its nodata value."""
        return not source.mask_flag_enums[band - 1]

    def all_valid(self, source: Any) -> bool:
        """Whether nothing in the file can make a pixel no data."""
        return (
            self.alpha is None
            and not self.palette
            and all(v is None for v in self.nodata)
            and np.dtype(self.dtype).kind != "f"
            and not self.shared_mask(source)
            and not any(self.band_mask(source, b) for b in self.bands)
        )


def choose_channels(source: Any, options: SceneOptions) -> Channels:
    """Settle bands, alpha, nodata values and colours of an open raster.

    Raises:
        OptionError: `bands` does not fit the raster.
        SceneReadError: The raster holds no numbers that can be shown as colours; the message names the way out.
    """
    alpha = _band_of(source, ColorInterp.alpha)
    bands = _choose_bands(source, options.bands, alpha)
    dtypes = [source.dtypes[b - 1] for b in bands]
    if any("complex" in d for d in dtypes):
        raise SceneReadError(
            f"{source.name} holds complex numbers, which are no colours. Write their magnitude as a raster of its own "
            f'(gdal_calc.py -A IN.tif --calc "abs(A)" --outfile OUT.tif --type Float32), or choose other bands with --bands'
        )
    palette = len(bands) == 1 and source.colorinterp[bands[0] - 1] == ColorInterp.palette
    if options.bands is None and not palette:
        _refuse_other_colours(source, bands)
    dtype = np.result_type(*dtypes).name
    bits = {_bits(source, b) for b in bands} if dtype == "uint8" and not palette else {8}
    inverted = tuple(not palette and _is_inverted(source, b) for b in bands)
    if dtype == "uint8" and options.stretch is None and len({source.scales[b - 1] for b in bands}) > 1:
        log.warning(
            "%s has another scale for each band; 8-bit numbers are shown as they are stored (--set scene.stretch=2,98 evens bands out)",
            source.name,
        )
    return Channels(
        bands=bands,
        alpha=alpha,
        nodata=tuple(source.nodatavals[b - 1] if options.nodata is None else options.nodata for b in bands),
        own_nodata=options.nodata is None,
        dtype=dtype,
        palette=palette,
        inverted=inverted,
        bits=bits.pop() if len(bits) == 1 else 8,
    )


def is_alpha_an_image(source: Any, alpha: int) -> bool:
    """Whether a band that is called alpha looks like imagery: most of its numbers are none that stand for opaque.

    GDAL takes a fourth band without a name, such as near-infrared, for alpha. Looks at 16 small windows; those that
    cannot be read tell nothing.
    """
    partly = seen = 0
    for i, j in product(range(4), repeat=2):
        corner = int(source.width * (j + 0.5) / 4), int(source.height * (i + 0.5) / 4)
        with suppress(RasterioError):
            values = source.read(alpha, window=Window(*corner, _PROBE, _PROBE))
            values = values[values > 0]
            seen += values.size
            partly += values.size - np.isin(values, _OPAQUE).sum()
    return bool(partly > seen / 2)


def _choose_bands(source: Any, wanted: tuple[int, ...] | None, alpha: int | None) -> tuple[int, ...]:
    if wanted is not None:
        if len(wanted) not in (1, 3) or any(not 1 <= b <= source.count for b in wanted):
            raise OptionError(
                f"--bands takes one or three numbers in 1..{source.count} (this raster's bands), got {','.join(map(str, wanted))}"
            )
        return tuple(wanted)
    by_name = [_band_of(source, c) for c in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)]
    if None not in by_name:
        return tuple(b for b in by_name if b is not None)
    colour = [b for b in source.indexes if b != alpha]
    if not colour:
        raise SceneReadError(
            f"{source.name} holds an alpha band alone; there is nothing to see (--bands 1 shows it as gray)"
        )
    return tuple(colour[:3]) if len(colour) >= 3 else (colour[0],)


def _band_of(source: Any, meaning: ColorInterp) -> int | None:
    return next((b for b, c in zip(source.indexes, source.colorinterp, strict=True) if c == meaning), None)


def _refuse_other_colours(source: Any, bands: tuple[int, ...]) -> None:
    found = [source.colorinterp[b - 1] for b in bands]
    space = next((_OTHER_COLOURS[c] for c in found if c in _OTHER_COLOURS), None)
    if space is not None:
        raise SceneReadError(
            f"{source.name} is stored as {space}, not as red, green and blue. Convert it to RGB first, "
            f"or say with --bands which bands to show as they are"
        )
    if ColorInterp.palette in found:
        raise SceneReadError(
            f"{source.name} has a colour table and further bands. Name its band (--bands {bands[found.index(ColorInterp.palette)]}) "
            f"to map the colours of the table, or three bands to show them as they are"
        )


def _bits(source: Any, band: int) -> int:
    return int(source.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", 8))


def _is_inverted(source: Any, band: int) -> bool:
    """Whether low numbers are bright: MINISWHITE, or a negative scale, not both."""
    minus = source.scales[band - 1] < 0
    return bool(minus != (source.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"))


def differs(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Where values are not the nodata value, of the same shape; None if all are.

    Floats are compared within four units of the last place, as tags are kept as decimal text.
    """
    if nodata is None:
        return None
    if values.dtype.kind != "f":
        kind = np.iinfo(values.dtype)
        fits = np.isfinite(nodata) and float(nodata).is_integer() and kind.min <= int(nodata) <= kind.max
        return np.asarray(values != values.dtype.type(int(nodata))) if fits else None
    if np.isnan(nodata):
        return np.asarray(~np.isnan(values))
    with np.errstate(over="ignore", invalid="ignore"):
        value = values.dtype.type(nodata)
        near = np.abs(values - value) <= 4 * np.finfo(values.dtype).eps * np.abs(value)
    return np.asarray(~(near | (values == value)))
