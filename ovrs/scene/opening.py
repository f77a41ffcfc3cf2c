"""Open a raster: settle its north-up grid, bands, validity rule and stretch, once and for all tiles."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from ovrs.errors import OptionError, SceneReadError, told
from ovrs.redact import is_redacted, redacted
from ovrs.scene import identity
from ovrs.scene.acquired import acquired
from ovrs.scene.channels import choose_channels, differs, is_alpha_an_image
from ovrs.scene.grid import Window, crop_to_bounds, nominal_size_m, regrid
from ovrs.scene.limits import check_claims
from ovrs.scene.radiometry import DEFAULT_PERCENTILES, fixed_stretch, measure_stretch, suspected_nodata
from ovrs.scene.raster import RasterScene
from ovrs.scene.reader import environment, place_by_points, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.options import SceneOptions

log = logging.getLogger(__name__)

FINEST_GSD, COARSEST_GSD = 0.08, 5.0
"""Pixel sizes in metres beyond which a scene is refused without `--gsd`, or warned about."""

_SAME_GSD = 0.01
"""A grid of pixels within one percent of the source's size is the grid of the source: nothing is resampled."""

_COARSER = 1.2
"""From this ratio of pixel sizes on, pixels are averaged instead of interpolated."""

_SAMPLE_SIDE = 1024
"""Longest side of the decimated read that stretch limits come from."""


def open_scene(uri: str | Path, options: SceneOptions) -> RasterScene:
    """Open a raster and settle its grid, bands, validity rule and stretch.

    Raises:
        SceneReadError: Not readable, without one valid pixel, or no georeference (the message names the way out).
        OptionError: Bands, bounds or area of interest do not fit the raster.
    """
    require_whole(uri)
    identity.forget_cached(str(uri))
    with _opened(uri) as source:
        origin = identity.origin_of(str(uri))
        channels = choose_channels(source, options)
        if channels.alpha is not None and is_alpha_an_image(source, channels.alpha):
            log.warning(
                "band %d of %s is called alpha and looks like imagery; its zeros count as no data. If it is near-infrared or "
                "the like, say so: gdal_edit.py -colorinterp_%d undefined",
                channels.alpha,
                uri,
                channels.alpha,
            )
        geobox, warp, coarser = _settle_grid(source, options)
        geobox, aoi, aoi_note = _restrict(geobox, options)
        scene = RasterScene(
            uri=str(uri),
            geobox=geobox,
            channels=channels,
            warp=warp,
            resampling="average" if coarser else "bilinear",
            stretch=None,
            aoi=aoi,
            aoi_note=aoi_note,
            source=_facts(source, uri) | origin.facts(),
            origin=origin,
        )
        may_be_empty = aoi is not None or not channels.all_valid(source)
    if options.stretch or channels.shown_dtype != "uint8":
        return _with_stretch(scene, options.stretch or DEFAULT_PERCENTILES)
    if may_be_empty and not _has_valid_pixel(scene):
        raise SceneReadError(
            f"{uri} holds no valid pixel in the area that was asked for; check its nodata value and masks"
        )
    return replace(scene, stretch=fixed_stretch(channels.bits, channels.inverted))


def _with_stretch(scene: RasterScene, percentiles: tuple[float, float]) -> RasterScene:
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise OptionError(f"scene.stretch needs two rising percentiles in 0..100, got {percentiles}")
    bands, valid = scene.sample(_SAMPLE_SIDE)
    counts = np.broadcast_to(valid, bands.shape).copy()
    for values, counted, nodata in zip(bands, counts, _each(scene.channels.nodata, len(bands)), strict=True):
        real = differs(values, nodata)
        if real is not None:
            counted &= real
    found = suspected_nodata(bands, valid)
    if found is not None:
        log.warning(
            "%.1f %% of the pixels of %s are %.17g in every band, far from all others. If that means no data, give "
            "--set scene.nodata=%.17g: they count as imagery now and spoil its contrast",
            100 * found[1],
            scene.uri,
            found[0],
            found[0],
        )
    return replace(scene, stretch=measure_stretch(bands, counts, percentiles, scene.channels.inverted))


def _each(nodata: tuple[float | None, ...], count: int) -> tuple[float | None, ...]:
    """No data value of each band that was read; a palette's belongs to its indices."""
    return nodata if len(nodata) == count else (None,) * count


def _has_valid_pixel(scene: RasterScene) -> bool:
    """Look at 64 small windows first, then at all of the scene, until a valid pixel is found."""
    height, width = scene.geobox.shape
    probes = [(int(height * (i + 0.5) / 8), int(width * (j + 0.5) / 8), 64) for i, j in product(range(8), repeat=2)]
    strips = [(row, col, 2048) for row in range(0, height, 2048) for col in range(0, width, 2048)]
    return any(
        scene.read(Window(row, col, min(side, height - row), min(side, width - col))).valid.any()
        for row, col, side in probes + strips
    )


@contextmanager
def _opened(uri: str | Path) -> Iterator[Any]:
    with environment(str(uri)), _readable_text(uri):
        try:
            with quiet():
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


@contextmanager
def _readable_text(uri: str | Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise SceneReadError(f"{uri}: a name or note in its header is no UTF-8 text; is it damaged?") from error


def _settle_grid(source: Any, options: SceneOptions) -> tuple[GeoBox, bool, bool]:
    """Return the north-up grid to work on, whether pixels must be resampled to get there, and whether they become coarser."""
    own, warp = _own_grid(source, options)
    if options.gsd is None:
        if own.crs is not None:
            _check_size(source.name, max(nominal_size_m(own)))
        return own, warp, False
    if own.crs is None:
        raise OptionError("--gsd needs a georeferenced scene: without one the size of a pixel is unknown")
    here = nominal_size_m(own)
    if max(abs(size / options.gsd - 1) for size in here) <= _SAME_GSD:
        return own, warp, False
    return regrid(own, options.gsd), True, options.gsd > _COARSER * (here[0] * here[1]) ** 0.5


def _own_grid(source: Any, options: SceneOptions) -> tuple[GeoBox, bool]:
    """Return the source's pixels as a north-up grid, and whether they must be resampled for it."""
    transform, crs = source.transform, source.crs
    if crs is None or transform.is_identity:
        if (placed := place_by_points(source)) is not None:
            with placed:
                return GeoBox(placed.shape, placed.transform, placed.crs.to_wkt()), True
        if not options.allow_ungeoreferenced:
            lacking = "CRS" if crs is None else "transform"
            remedy = "Add one (gdal_edit -a_srs/-a_ullr)"
            if source.rpcs is not None:
                remedy = "It has rational polynomial coefficients: orthorectify it first (gdalwarp -rpc)"
            raise SceneReadError(
                f"{source.name} has no {lacking}, so a map of it has no place on the ground. {remedy}, "
                f"or pass --allow-ungeoreferenced (--set scene.allow_ungeoreferenced=true) to map it on its pixel grid"
            )
        if options.gsd is not None:
            raise OptionError("--gsd needs a georeferenced scene: without one the size of a pixel is unknown")
        return GeoBox(source.shape, transform, None if crs is None else crs.to_wkt()), False
    if transform.b == 0 and transform.d == 0:  # north-up, or the same mirrored
        left, top = (
            min(transform.c, transform.c + transform.a * source.width),
            max(transform.f, transform.f + transform.e * source.height),
        )
        upright = Affine(abs(transform.a), 0, left, 0, -abs(transform.e), top)
        return GeoBox(source.shape, upright, crs.to_wkt()), False
    with WarpedVRT(source, crs=crs) as warped:  # rotated or sheared
        return GeoBox(warped.shape, warped.transform, crs.to_wkt()), True


def _check_size(name: str, metres: float) -> None:
    """Refuse imagery far finer than the 0.1 to 1 m that models know, and warn about far coarser."""
    if metres < FINEST_GSD:
        raise OptionError(
            f"{name} has pixels of {metres:.3g} m, finer than the models know (0.1 to 1 m): every object would fill a whole "
            f"window. Give --gsd 0.2 to work on a grid of 0.2 m, or --gsd {metres:.3g} to insist on the original pixels"
        )
    if metres > COARSEST_GSD:
        log.warning("%s has pixels of %.3g m; the models know 0.1 to 1 m, expect little of the map", name, metres)


def _restrict(geobox: GeoBox, options: SceneOptions) -> tuple[GeoBox, str | None, str]:
    """Return the grid cut to box and area of interest, the area as WKT, and what to say about it."""
    if options.bbox is not None:
        geobox = crop_to_bounds(geobox, options.bbox)
    if options.aoi is None:
        return geobox, None, ""
    from ovrs.scene.aoi import restrict

    area = restrict(geobox, options.aoi)
    return area.geobox, area.wkt, area.note


def _facts(source: Any, uri: str | Path) -> dict[str, object]:
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
        **({"acquired": when} if (when := acquired(source)) is not None else {}),
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
