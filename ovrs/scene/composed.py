"""A raster seen through a GDAL VRT: the chosen bands alone, a palette expanded, and all that makes pixels no data in one alpha band.

GDAL's warper knows one nodata value for all bands, or a mask, not both. It weights every band by an alpha band.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from rasterio._path import _parse_path  # GDAL's name of a source, which no public function tells
from rasterio.session import Session

if TYPE_CHECKING:
    from ovrs.scene.channels import Channels

TYPES = {"uint8": "Byte", "int8": "Int8"} | {
    f"{kind}{bits}": f"{kind.replace('u', 'U', 1).replace('i', 'I', 1).replace('f', 'F', 1)}{bits}"
    for kind, sizes in (("uint", (16, 32, 64)), ("int", (16, 32, 64)), ("float", (32, 64)))
    for bits in sizes
}
"""GDAL's names of types, by NumPy's."""


def open_composed(source: Any, channels: Channels) -> Any:
    """Open the view: `channels.shown` bands, then an alpha band (0 or 255) unless every pixel is valid."""
    with rasterio.Env(session=Session.from_path(source.name)):
        return rasterio.open(document(source, channels))


def document(source: Any, channels: Channels) -> str:
    """Return the VRT as XML text."""
    name = _parse_path(source.name).as_vsi()
    bands = [_data_band(name, channels, k) for k in range(channels.shown)]
    if not channels.all_valid(source):
        bands.append(_alpha_band(source, name, channels))
    return _dataset(source, [_numbered(text, k + 1) for k, text in enumerate(bands)], _place(source))


def _dataset(source: Any, bands: list[str], place: str = "") -> str:
    return (
        f'<VRTDataset rasterXSize="{source.width}" rasterYSize="{source.height}">{place}{"".join(bands)}</VRTDataset>'
    )


def _place(source: Any) -> str:
    points, points_crs = source.gcps
    text = "" if source.crs is None else f"<SRS>{escape(source.crs.to_wkt())}</SRS>"
    if not source.transform.is_identity:
        text += f"<GeoTransform>{', '.join(repr(float(v)) for v in source.transform.to_gdal())}</GeoTransform>"
    if points and points_crs is not None:
        each = "".join(
            f'<GCP Id="{k}" Pixel="{p.col!r}" Line="{p.row!r}" X="{p.x!r}" Y="{p.y!r}" Z="{p.z or 0.0!r}"/>'
            for k, p in enumerate(points)
        )
        quoted = escape(points_crs.to_wkt(), {'"': "&quot;"})
        text += f'<GCPList Projection="{quoted}">{each}</GCPList>'
    return text


def _numbered(band: str, number: int) -> str:
    return band.replace("<VRTRasterBand", f'<VRTRasterBand band="{number}"', 1)


def _band(dtype: str, content: str) -> str:
    return f'<VRTRasterBand dataType="{TYPES[dtype]}">{content}</VRTRasterBand>'


def _from(name: str, band: int | str, more: str = "", kind: str = "ComplexSource") -> str:
    where = f'<SourceFilename relativeToVRT="0">{escape(name)}</SourceFilename><SourceBand>{band}</SourceBand>'
    return f"<{kind}>{where}{more}</{kind}>"


def _data_band(name: str, channels: Channels, k: int) -> str:
    if channels.palette:
        part = _from(name, channels.bands[0], f"<ColorTableComponent>{k + 1}</ColorTableComponent>")
        return _band("uint8", part)
    return _band(channels.dtype, _from(name, channels.bands[k], kind="SimpleSource"))


_ALWAYS_255 = "<ScaleOffset>255</ScaleOffset><ScaleRatio>0</ScaleRatio>"
_ABOVE_0_IS_255 = "<LUT>0:0,0.000001:255</LUT>"


def _alpha_band(source: Any, name: str, channels: Channels) -> str:
    """255 where any band counts; then 0 where another rule says no."""
    content = "".join(
        _counting(source, name, b, nodata, channels.band_mask(source, b))
        for b, nodata in zip(channels.bands, channels.nodata, strict=True)
    )
    return _band(
        "uint8", "<ColorInterp>Alpha</ColorInterp>" + content + _vetoed(source, _vetoes(source, name, channels))
    )


def _counting(source: Any, name: str, band: int, nodata: float | None, masked: bool) -> str:
    """Return a source that paints 255 where a band differs from its nodata value, under its own mask, and nothing elsewhere."""
    differing = _from(name, band, _ALWAYS_255 + ("" if nodata is None else f"<NODATA>{nodata!r}</NODATA>"))
    if not masked:
        return differing
    both = _band("uint8", differing + _vetoed(source, [_from(name, f"mask,{band}", _ABOVE_0_IS_255)]))
    return _from(_dataset(source, [_numbered(both, 1)]), 1, "<NODATA>0</NODATA>")


def _vetoes(source: Any, name: str, channels: Channels) -> list[str]:
    """Return sources that are 0 where a pixel is no data whatever its bands say, and 255 elsewhere."""
    found = []
    if np.dtype(channels.dtype).kind == "f":  # 0 times NaN or infinity is NaN
        times_zero = _ALWAYS_255 + "<NODATA>nan</NODATA>"  # without a nodata value GDAL does not look at the numbers
        finite = [
            _band("float64", "<NoDataValue>nan</NoDataValue>" + _from(name, b, times_zero)) for b in channels.bands
        ]
        inner = _dataset(source, [_numbered(text, k + 1) for k, text in enumerate(finite)])
        found += [_from(inner, f"mask,{k + 1}") for k in range(len(finite))]
    if channels.shared_mask(source):
        found.append(_from(name, f"mask,{channels.bands[0]}", _ABOVE_0_IS_255))
    if channels.alpha is not None:
        found.append(_from(name, channels.alpha, _ABOVE_0_IS_255))
    if channels.palette:
        found.append(_from(name, channels.bands[0], "<ColorTableComponent>4</ColorTableComponent>" + _ABOVE_0_IS_255))
    return found


def _vetoed(source: Any, vetoes: list[str]) -> str:
    """Return sources that paint 0 where any of `vetoes` is 0, and nothing elsewhere."""
    if not vetoes:
        return ""
    inner = _dataset(source, [_numbered(_band("uint8", v), k + 1) for k, v in enumerate(vetoes)])
    return "".join(_from(inner, k + 1, "<NODATA>255</NODATA>") for k in range(len(vetoes)))
