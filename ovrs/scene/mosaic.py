"""Several rasters as one: a GDAL VRT over files that have the same bands, on the grid of the first.

A later file lies on top of an earlier one; its pixels without data are seen through. Where no file lies, nothing is data.
"""

from __future__ import annotations

import glob
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.shutil import copy as copy_raster
from rasterio.vrt import WarpedVRT

from ovrs import files
from ovrs.errors import SceneReadError, told
from ovrs.redact import redacted
from ovrs.scene import vsi
from ovrs.scene.composed import TYPES
from ovrs.scene.reader import environment, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ALIGNED = 0.01
"""Files whose pixels lie off the first one's grid by less than this share of a pixel are not resampled."""
_COARSER = 1.2
"""From this ratio of pixel sizes on, pixels are averaged instead of interpolated."""
_SIDE_FILES = (".ovr", ".msk", ".aux.xml")
_WAY = "map it by itself, or bring it to the form of the others first"


def several(given: Sequence[str]) -> list[str]:
    """Return the files that arguments stand for, in order: paths and addresses, patterns such as `tiles/*.tif`, folders.

    A folder that GDAL opens as a raster is one; any other stands for the rasters in it, by name.

    Raises:
        SceneReadError: A pattern or folder holds no raster, or a file is named twice.
    """
    found = [name for argument in given for name in _expanded(argument)]
    names = [_absolute(name) for name in found]
    twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if twice is not None:
        raise SceneReadError(f"{twice} is named twice; name each file of a scene once")
    return found


def _expanded(argument: str) -> list[str]:
    if "://" in argument or argument.startswith("/vsi") or (files.exists(argument) and not Path(argument).is_dir()):
        return [argument]
    if Path(argument).is_dir():
        if vsi.is_raster(argument):
            return [argument]
        names = [str(p) for p in sorted(Path(argument).iterdir()) if p.is_file() and _is_tile(p)]
        if not names:
            raise SceneReadError(f"the folder {argument} holds no raster that GDAL can open")
        return names
    if any(sign in argument for sign in "*?["):
        matching = sorted(glob.glob(argument))  # noqa: PTH207  (pathlib takes no absolute pattern)
        names = [n for n in matching if not n.lower().endswith(_SIDE_FILES)]
        if not names and not argument.partition(":")[1]:
            raise SceneReadError(f"no file matches {argument}")
        return names or [argument]
    return [argument]


def _is_tile(path: Path) -> bool:
    return not path.name.startswith(".") and not path.name.lower().endswith(_SIDE_FILES) and vsi.is_raster(str(path))


def _absolute(name: str) -> str:
    """GDAL's name, which does not depend on the folder the process stands in; links stay."""
    return str(Path(name).absolute()) if files.exists(name) else vsi.name_of(name)


def documents(given: Sequence[str], folder: Path, name: str) -> dict[str, str]:
    """Return the files that make a mosaic: `name.vrt`, and a VRT for each file that must be warped. Writes nothing.

    Args:
        given: Two files or more; the first gives CRS, pixel size and origin.
        folder: Where they will lie.
        name: Of the scene.

    Returns:
        Their text by their names.

    Raises:
        SceneReadError: A file cannot be opened, has no place on the ground, or other bands, types or no data values.
    """
    for uri in given:
        if redacted(uri) != uri:
            raise SceneReadError(
                f"{redacted(uri)} holds a secret, which a mosaic would keep in its file; give credentials by environment "
                "variables, or make files of this machine of it"
            )
    parts: list[_Part] = []
    with environment(given[0]):
        for number, uri in enumerate(given):
            with _opened(uri) as source:
                _require_like(source, uri, parts[0] if parts else None)
                view = folder.absolute() / f"{name}.{number + 1}.vrt"
                parts.append(_placed(source, uri, parts[0] if parts else None, view))
        found = {Path(part.name).name: part.view for part in parts if part.view}
        return {**found, f"{name}.vrt": _document(parts)}


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One file on the grid of the mosaic."""

    uri: str
    name: str
    """GDAL's name of it, or of its warped view."""
    facts: dict[str, object]
    """What all files must have alike."""
    geobox: GeoBox
    own_mask: bool
    """Whether a mask beside its bands, or what warping adds, says where it has data."""
    view: str = ""
    """Text of its warped view."""


@contextmanager
def _opened(uri: str) -> Iterator[Any]:
    try:
        with quiet():
            source = rasterio.open(uri)
    except RasterioError as error:
        raise SceneReadError(f"cannot open {uri} as a raster: {told(error)}") from error
    with source:
        yield source


def _facts(source: Any) -> dict[str, object]:
    tables = [
        sorted(source.colormap(b).items()) if c == ColorInterp.palette else None
        for b, c in zip(source.indexes, source.colorinterp, strict=True)
    ]
    return {
        "bands": source.count,
        "data types": ", ".join(source.dtypes),
        "meanings of bands": ", ".join(c.name for c in source.colorinterp),
        "no data values": ", ".join("none" if v is None else f"{v:g}" for v in source.nodatavals),
        "scales": ", ".join(f"{s:g}" for s in source.scales),
        "offsets": ", ".join(f"{o:g}" for o in source.offsets),
        "bits": ", ".join(source.tags(b, ns="IMAGE_STRUCTURE").get("NBITS", "all") for b in source.indexes),
        "meaning of zero": "white" if source.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES" else "dark",
        "colour table": tables,
    }


def _require_like(source: Any, uri: str, first: _Part | None) -> None:
    if source.crs is None or source.transform.is_identity:
        lacking = "CRS" if source.crs is None else "transform"
        raise SceneReadError(
            f"{uri} has no {lacking}, so it has no place in a mosaic; add one (gdal_edit -a_srs/-a_ullr)"
        )
    if source.count == 0 or any("complex" in d for d in source.dtypes):
        raise SceneReadError(f"{uri} has no bands that can be shown; {_WAY}")
    if first is None:
        return
    for key, value in _facts(source).items():
        if value != first.facts[key]:
            what = "" if key == "colour table" else f" ({value}; the first file has {first.facts[key]})"
            raise SceneReadError(
                f"{uri} differs from {first.uri} in its {key}{what}; files of one scene must be alike: {_WAY} (gdal_translate, "
                "gdal_edit), or leave it out"
            )


def _placed(source: Any, uri: str, first: _Part | None, warped: Path) -> _Part:
    """Return the file as it is if it lies on the grid of the first, else a view that does."""
    facts = _facts(source)
    masked = any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in source.mask_flag_enums)
    upright = source.transform.b == 0 == source.transform.d and source.transform.a > 0 > source.transform.e
    own = GeoBox(source.shape, source.transform, source.crs.to_wkt())
    if upright and (first is None or _fits(own, first.geobox)):
        return _Part(uri=uri, name=_absolute(uri), facts=facts, geobox=own, own_mask=masked)
    grid = _grid_for(source, first)
    alpha = ColorInterp.alpha in source.colorinterp
    nodata = all(v is not None for v in source.nodatavals)
    size = abs(source.transform.a * source.transform.e - source.transform.b * source.transform.d) ** 0.5
    same = first is None or own.crs == first.geobox.crs
    coarser = same and abs(grid.affine.a) > _COARSER * size
    palette = ColorInterp.palette in source.colorinterp
    how = Resampling.nearest if palette else Resampling.average if coarser else Resampling.bilinear
    with WarpedVRT(
        source,
        crs=None if grid.crs is None else grid.crs.to_wkt(),
        transform=grid.affine,
        height=grid.height,
        width=grid.width,
        resampling=how,
        add_alpha=not alpha and not nodata,
    ) as view:
        text = _text(view)
    own_mask = not alpha and not nodata
    return _Part(uri=uri, name=str(warped), facts=facts, geobox=grid, own_mask=own_mask, view=text)


def _text(view: WarpedVRT) -> str:
    """Return a warped view as XML with absolute names."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "view.vrt"
        copy_raster(view, str(file), driver="VRT")
        return file.read_text("utf-8")


def _fits(own: GeoBox, first: GeoBox) -> bool:
    """Whether pixels are those of the first file's grid, continued."""
    a, b = own.affine, first.affine
    if own.crs != first.crs:
        return False
    side = max(own.shape)
    if abs(a.a / b.a - 1) * side > _ALIGNED or abs(a.e / b.e - 1) * side > _ALIGNED:
        return False
    col, row = (~b) @ (a.c, a.f)
    return bool(abs(col - round(col)) < _ALIGNED and abs(row - round(row)) < _ALIGNED)


def _grid_for(source: Any, first: _Part | None) -> GeoBox:
    """Return the part of the first file's grid, continued, that holds a source; of a turned first file, GDAL's own grid."""
    if first is None:
        with WarpedVRT(source, crs=source.crs) as view:
            return GeoBox(view.shape, view.transform, source.crs.to_wkt())
    grid = first.geobox
    assert grid.crs is not None  # every part has one
    with WarpedVRT(source, crs=grid.crs.to_wkt()) as view:
        bounds = view.bounds
    corners = [(~grid.affine) @ xy for xy in ((bounds.left, bounds.top), (bounds.right, bounds.bottom))]
    (left, top), (right, bottom) = corners
    col, row = int(left // 1), int(top // 1)
    shape = (int(-(-bottom // 1)) - row, int(-(-right // 1)) - col)
    return GeoBox(shape, grid.affine @ _shift(col, row), grid.crs)


def _shift(col: int, row: int) -> Any:
    return rasterio.Affine.translation(col, row)


def _document(parts: list[_Part]) -> str:
    """Return the mosaic as XML."""
    first, grid = parts[0], parts[0].geobox
    places = []
    for part in parts:
        col, row = (~grid.affine) @ (part.geobox.affine.c, part.geobox.affine.f)
        places.append((round(col), round(row)))
    left, top = min(c for c, _ in places), min(r for _, r in places)
    width = max(c + p.geobox.width for (c, _), p in zip(places, parts, strict=True)) - left
    height = max(r + p.geobox.height for (_, r), p in zip(places, parts, strict=True)) - top
    affine = grid.affine @ _shift(left, top)
    with rasterio.open(first.uri) as source:
        bands = list(_bands(source, parts, [(c - left, r - top) for c, r in places]))
        white = first.facts["meaning of zero"] == "white"
    assert grid.crs is not None  # every part has one
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{escape(grid.crs.to_wkt())}</SRS>'
        f"<GeoTransform>{', '.join(repr(float(v)) for v in affine.to_gdal())}</GeoTransform>"
        + ('<Metadata domain="IMAGE_STRUCTURE"><MDI key="MINISWHITE">YES</MDI></Metadata>' if white else "")
        + "\n".join(bands)
        + "</VRTDataset>\n"
    )


def _bands(source: Any, parts: list[_Part], places: list[tuple[int, int]]) -> Iterator[str]:
    alpha = ColorInterp.alpha in source.colorinterp
    masked = not alpha and (any(p.own_mask for p in parts) or any(v is None for v in source.nodatavals))
    for band in source.indexes:
        nodata, meaning = source.nodatavals[band - 1], source.colorinterp[band - 1]
        head = f"<ColorInterp>{meaning.name.title()}</ColorInterp>" if meaning.name != "undefined" else ""
        head += f"<NoDataValue>{nodata!r}</NoDataValue>" if nodata is not None else ""
        head += f"<Scale>{source.scales[band - 1]!r}</Scale><Offset>{source.offsets[band - 1]!r}</Offset>"
        if (bits := source.tags(band, ns="IMAGE_STRUCTURE").get("NBITS")) is not None:
            head += f'<Metadata domain="IMAGE_STRUCTURE"><MDI key="NBITS">{bits}</MDI></Metadata>'
        if meaning == ColorInterp.palette:
            table = sorted(source.colormap(band).items())
            entries = "".join(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="{a}"/>' for _, (r, g, b, a) in table)
            head += f"<ColorTable>{entries}</ColorTable>"
        sources = ""
        for part, place in zip(parts, places, strict=True):
            through = "" if nodata is None else f"<NODATA>{nodata!r}</NODATA>"
            if meaning == ColorInterp.alpha:
                through = "<NODATA>0</NODATA>"
            elif part.own_mask or alpha:
                through += "<UseMaskBand>true</UseMaskBand>"
            sources += _from(part, place, str(band), through)
        dtype = TYPES[source.dtypes[band - 1]]
        yield f'<VRTRasterBand dataType="{dtype}" band="{band}">{head}{sources}</VRTRasterBand>'
    if masked:
        covered = "".join(_covered(part, place) for part, place in zip(parts, places, strict=True))
        yield f'<MaskBand><VRTRasterBand dataType="Byte">{covered}</VRTRasterBand></MaskBand>'


def _covered(part: _Part, place: tuple[int, int]) -> str:
    """255 where a file has data by its own mask; by no data values the bands themselves say it."""
    if part.own_mask or part.facts["no data values"] == ", ".join(["none"] * int(str(part.facts["bands"]))):
        return _from(part, place, "mask,1", "<NODATA>0</NODATA>")
    return _from(part, place, "1", "<ScaleOffset>255</ScaleOffset><ScaleRatio>0</ScaleRatio>")


def _from(part: _Part, place: tuple[int, int], band: str, more: str) -> str:
    width, height = part.geobox.width, part.geobox.height
    rectangle = f'xOff="{{}}" yOff="{{}}" xSize="{width}" ySize="{height}"'
    kind = "ComplexSource" if more else "SimpleSource"
    return (
        f'<{kind}><SourceFilename relativeToVRT="0">{escape(part.name)}</SourceFilename><SourceBand>{band}</SourceBand>'
        f"<SrcRect {rectangle.format(0, 0)}/><DstRect {rectangle.format(*place)}/>{more}</{kind}>"
    )
