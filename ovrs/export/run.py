"""One export: everything that was asked for is checked first, then written, and told line by line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs.clean.cleaning import Cleaning
from ovrs.clean.stage import cleaned
from ovrs.export import target
from ovrs.export.cog import write_cog, write_confidence
from ovrs.export.product import CLASSES, CONFIDENCE, ITEM, PICTURE, STYLE, Product
from ovrs.export.qml import write_qml
from ovrs.export.sld import polygon_style_path, style_vectors, write_sld
from ovrs.export.stac import write_item
from ovrs.export.vector_files import LAYER
from ovrs.export.vectors import check_vectors, write_vectors
from ovrs.export.warp import target_grid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.store.map import Map

_KINDS = {"--cog": CLASSES, "--confidence": CONFIDENCE, "--png": PICTURE, "--stac": ITEM}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to write, and how."""

    paths: dict[str, Path]
    """File for each option: `--cog`, `--confidence`, `--vectors`, `--png`, `--stac`."""
    crs: str | None = None
    resolution: float | None = None
    """In units of the rasters' CRS."""
    min_area: float = 0.0
    """Square metres."""
    simplify: float = 0.0
    """In units of the map's CRS."""
    regularise: tuple[str, ...] = ()
    """Classes whose outlines get right angles."""
    tolerance: float | None = None
    """Metres on the ground by which such an outline may move; None: three pixels."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    layer: str = LAYER
    overwrite: bool = False


def write_products(mapped: Map, request: Request) -> Iterator[str]:
    """Write products of a map; a line for each file, as soon as it is there.

    Raises:
        OptionError: A path may not be written, or an option does not fit the map; nothing was written then.
        StoreError: The map is damaged or has no place for a STAC Item; or a file cannot be written, and those
            that were told of before are complete.
    """
    _check(mapped, request)
    with cleaned(mapped, request.cleaning) as decided:
        yield from _write(decided, request)


def _write(mapped: Map, request: Request) -> Iterator[str]:
    made: list[Product] = []
    paths, again = request.paths, request.overwrite
    if "--cog" in paths:
        made.append(write_cog(mapped, paths["--cog"], crs=request.crs, resolution=request.resolution, overwrite=again))
        yield f"cog: {paths['--cog']}"
        yield f"style: {write_qml(mapped, paths['--cog'], overwrite=again)}"
        yield f"style: {write_sld(mapped, paths['--cog'], overwrite=again)}"
    if "--confidence" in paths:
        made.append(
            write_confidence(
                mapped, paths["--confidence"], crs=request.crs, resolution=request.resolution, overwrite=again
            )
        )
        yield f"confidence: {paths['--confidence']}"
    if "--vectors" in paths:
        made.append(_polygons(mapped, request))
        yield f"vectors: {paths['--vectors']} ({made[-1].features} polygons)"
        if made[-1].remark:
            yield f"regularised: {made[-1].remark}"
        yield f"style: {style_vectors(mapped, paths['--vectors'], overwrite=again)}"
    if "--png" in paths:
        from ovrs.export.quicklook import write_quicklook

        made.append(write_quicklook(mapped, paths["--png"], overwrite=again))
        yield f"picture: {paths['--png']}"
    if "--stac" in paths:
        yield f"stac: {write_item(mapped, paths['--stac'], made, overwrite=again)}"


def _polygons(mapped: Map, request: Request) -> Product:
    return write_vectors(
        mapped,
        request.paths["--vectors"],
        min_area=request.min_area,
        simplify=request.simplify,
        regularise=request.regularise,
        tolerance=request.tolerance,
        layer=request.layer,
        overwrite=request.overwrite,
    )


def _check(mapped: Map, request: Request) -> None:
    """Everything that can be refused before the first file is written."""
    target.check_distinct(dict(_all_files(request.paths)))
    for option, kind in _KINDS.items():
        if option in request.paths:
            target.check(mapped, request.paths[option], kind, overwrite=request.overwrite)
    for style in _styles(request.paths):
        target.check(mapped, style, STYLE, overwrite=request.overwrite)
    if "--vectors" in request.paths:
        check_vectors(
            mapped,
            request.paths["--vectors"],
            min_area=request.min_area,
            simplify=request.simplify,
            regularise=request.regularise,
            tolerance=request.tolerance,
            layer=request.layer,
            overwrite=request.overwrite,
        )
    target_grid(mapped.grid, request.crs, request.resolution)
    if "--stac" in request.paths:
        from ovrs.export.footprint import footprint

        footprint(mapped.grid)


def _all_files(paths: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """Products and their side files, each with what names it."""
    yield from paths.items()
    for style in _styles(paths):
        yield f"the style {style.name}", style
    for option in ("--cog", "--confidence"):
        if option in paths:
            yield f"the attribute table of {option}", paths[option].with_name(paths[option].name + ".aux.xml")


def _styles(paths: dict[str, Path]) -> Iterator[Path]:
    if "--cog" in paths:
        yield from (paths["--cog"].with_suffix(s) for s in (".qml", ".sld"))
    beside = polygon_style_path(paths["--vectors"]) if "--vectors" in paths else None
    if beside is not None:
        yield beside
