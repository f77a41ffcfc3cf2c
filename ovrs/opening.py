"""Open a raster: settle its north-up grid, bands, validity rule and stretch, once and for all tiles."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from ovrs import identity, vsi
from ovrs.errors import OptionError, SceneReadError, told
from ovrs.grid import crop_to_bounds, pixel_size_m, regrid
from ovrs.limits import check_claims
from ovrs.radiometry import measure_stretch
from ovrs.redact import is_redacted, redacted
from ovrs.scene import GDAL_SETTINGS, RasterScene, decimated_shape, ground_points_vrt, read_valid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.options import SceneOptions

log = logging.getLogger(__name__)

FINEST_GSD, COARSEST_GSD = 0.08, 5.0
"""Pixel sizes in metres beyond which a scene is refused without `--gsd`, or warned about."""

_SAME_GSD = 0.01
"""A grid asked for within one percent of the source's own is the source's own."""

_SAMPLE_SIDE = 1024
"""Longest side of the decimated read that stretch limits come from."""


def open_scene(uri: str | Path, options: SceneOptions) -> RasterScene:
    """Open a raster and settle its grid, bands, validity rule and stretch.

    Raises:
        SceneReadError: Not readable, or no georeference (the message names the way out).
        OptionError: Bands, bounds or area of interest do not fit the raster.
    """
    require_whole(uri)
    identity.forget_cached(str(uri))
    with _opened(uri) as source:
        origin = identity.origin_of(str(uri))
        bands, alpha = _choose_bands(source, options.bands)
        nodata = options.nodata if options.nodata is not None else source.nodata
        geobox, warp = _settle_grid(source, options)
        geobox, aoi = _restrict(geobox, options)
        resampling = "average" if _is_coarser(source, geobox) else "bilinear"
        scene = RasterScene(
            uri=str(uri),
            geobox=geobox,
            bands=bands,
            alpha=alpha,
            warp=warp,
            resampling=resampling,
            nodata=nodata,
            nodata_override=options.nodata is not None and options.nodata != source.nodata,
            stretch=None,
            aoi=aoi,
            source=_facts(source, uri) | origin.facts(),
            origin=origin,
        )
        needs_stretch = options.stretch or any(source.dtypes[b - 1] != "uint8" for b in bands)
    return _with_stretch(scene, options.stretch or (2.0, 98.0)) if needs_stretch else scene


def _with_stretch(scene: RasterScene, percentiles: tuple[float, float]) -> RasterScene:
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise OptionError(f"--stretch needs two rising percentiles in 0..100, got {percentiles}")
    shape = decimated_shape(scene.geobox, _SAMPLE_SIDE)
    with rasterio.Env(**GDAL_SETTINGS):
        whole = RasterWindow(0, 0, scene.geobox.width, scene.geobox.height)
        bands, valid = read_valid(scene.handle(), scene.bands, scene.alpha, whole, shape)
    state = {**scene.__getstate__(), "stretch": measure_stretch(bands, valid, percentiles)}
    return RasterScene(**state)


@contextmanager
def _opened(uri: str | Path) -> Iterator[Any]:
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", NotGeoreferencedWarning
            )  # we report it ourselves, as an error with a way out
            with vsi.alone_if_remote(str(uri)):
                source = rasterio.open(uri)
    except RasterioError as error:
        raise SceneReadError(f"cannot open {uri} as a raster: {told(error)}") from error
    with source:
        check_claims(source)
        if source.count == 0:
            raise SceneReadError(
                f"{uri} opens without bands; name one of its sub-datasets: {', '.join(source.subdatasets) or 'none found'}"
            )
        yield source


def _choose_bands(source: Any, wanted: tuple[int, ...] | None) -> tuple[tuple[int, ...], int | None]:
    interpretation = list(source.colorinterp)
    alpha = interpretation.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in interpretation else None
    colour = [i + 1 for i in range(source.count) if i + 1 != alpha]
    if wanted is not None:
        if len(wanted) not in (1, 3) or any(not 1 <= b <= source.count for b in wanted):
            raise OptionError(
                f"--bands takes one or three numbers in 1..{source.count} (this raster's bands), got {','.join(map(str, wanted))}"
            )
        return tuple(wanted), alpha
    by_name = [
        interpretation.index(c) + 1
        for c in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        if c in interpretation
    ]
    if len(by_name) == 3:
        return tuple(by_name), alpha
    return (tuple(colour[:3]) if len(colour) >= 3 else (colour[0],)), alpha


def _settle_grid(source: Any, options: SceneOptions) -> tuple[GeoBox, bool]:
    """The north-up grid to work on, and whether pixels must be resampled to get there."""
    transform, crs = source.transform, source.crs
    ungeoreferenced = crs is None or transform.is_identity
    if ungeoreferenced and (placed := ground_points_vrt(source, options.nodata)) is not None:
        with placed:
            geobox, warp = GeoBox(placed.shape, placed.transform, placed.crs.to_wkt()), True
    elif ungeoreferenced:
        if not options.allow_ungeoreferenced:
            lacking = "CRS" if crs is None else "transform"
            raise SceneReadError(
                f"{source.name} has no {lacking}, so a map of it has no place on the ground. Add one (gdal_edit -a_srs/-a_ullr), "
                f"or pass --allow-ungeoreferenced to map it on its pixel grid"
            )
        if options.gsd is not None:
            raise OptionError("--gsd needs a georeferenced scene: without one the size of a pixel is unknown")
        geobox, warp = GeoBox(source.shape, transform, None if crs is None else crs.to_wkt()), False
    elif transform.b == 0 and transform.d == 0 and transform.a > 0 and transform.e < 0:
        geobox, warp = GeoBox(source.shape, transform, crs.to_wkt()), False
    else:  # rotated, sheared or south-up
        with WarpedVRT(source, crs=crs) as warped:
            geobox, warp = GeoBox(warped.shape, warped.transform, crs.to_wkt()), True
    if options.gsd is not None:
        here = pixel_size_m(geobox)
        if max(abs(size / options.gsd - 1) for size in here) > _SAME_GSD:
            geobox, warp = regrid(geobox, options.gsd), True
    elif geobox.crs is not None:
        _check_size(source.name, max(pixel_size_m(geobox)))
    return geobox, warp


def _check_size(name: str, metres: float) -> None:
    """The models know 0.1 to 1 m: refuse to read far finer imagery by accident, warn about far coarser."""
    if metres < FINEST_GSD:
        raise OptionError(
            f"{name} has pixels of {metres:.3g} m, finer than the models know (0.1 to 1 m): every object would fill a whole "
            f"window. Give --gsd 0.2 to work on a grid of 0.2 m, or --gsd {metres:.3g} to insist on the original pixels"
        )
    if metres > COARSEST_GSD:
        log.warning("%s has pixels of %.3g m; the models know 0.1 to 1 m, expect little of the map", name, metres)


def _restrict(geobox: GeoBox, options: SceneOptions) -> tuple[GeoBox, str | None]:
    if options.bbox is not None:
        geobox = crop_to_bounds(geobox, options.bbox)
    if options.aoi is None:
        return geobox, None
    import geopandas

    if not options.aoi.exists():
        raise OptionError(f"--aoi {options.aoi} does not exist")
    if geobox.crs is None:
        raise OptionError("--aoi needs a georeferenced scene")
    frame = geopandas.read_file(options.aoi)
    if frame.crs is None:
        raise OptionError(f"--aoi {options.aoi} has no CRS; set one so that it can be placed on the scene")
    shape = frame.to_crs(geobox.crs.to_wkt()).geometry.union_all()
    if shape.is_empty:
        raise OptionError(f"--aoi {options.aoi} holds no polygon")
    return crop_to_bounds(geobox, shape.bounds), shape.wkt


def _is_coarser(source: Any, geobox: GeoBox) -> bool:
    if source.crs is None or source.transform.is_identity:
        return False
    own = abs(source.transform.a * source.transform.e - source.transform.b * source.transform.d) ** 0.5
    return bool(abs(geobox.affine.a * geobox.affine.e) ** 0.5 > 1.2 * own)


def _facts(source: Any, uri: str | Path) -> dict[str, Any]:
    return {
        "name": redacted(Path(str(uri)).name.partition("?")[0] or str(uri)),
        "driver": source.driver,
        "height": source.height,
        "width": source.width,
        "count": source.count,
        "dtypes": list(source.dtypes),
        "crs": None if source.crs is None else source.crs.to_string(),
        "transform": list(source.transform)[:6],
        "nodata": None if source.nodata is None else repr(source.nodata),
    }


def require_whole(*addresses: str | Path | None) -> None:
    """Refuse the kept address of a scene or scheduler whose secret was not kept.

    Raises:
        SceneReadError: Says what to do.
    """
    for address in addresses:
        if is_redacted(str(address)):
            raise SceneReadError(
                f"{address} held a signature, token or password, and secrets are not kept. Repeat the first `ovrs map` command "
                f"with the whole address (a renewed signature is the same scene); what is done is kept"
            )
