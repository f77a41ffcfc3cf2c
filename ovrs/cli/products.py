"""Commands that turn a finished map into things people open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ovrs.cli import shared
from ovrs.cli.edge import App
from ovrs.errors import OptionError
from ovrs.names import shown

if TYPE_CHECKING:
    from ovrs.store.map import Map

app = App()

Store = Annotated[str, typer.Argument(help="A finished store, NAME.zarr, or its address.", show_default=False)]


@app.command(
    examples=(
        "ovrs export out.zarr --cog out.tif --vectors out.gpkg --png out.png --stac out.json",
        "ovrs export out.zarr --cog web.tif --crs EPSG:3857 --min-mapping-unit 50m2",
    )
)
def export(
    store: Store,
    cog: Annotated[
        Path | None, typer.Option(help="Cloud Optimized GeoTIFF with colours, class names, QML and SLD styles.")
    ] = None,
    confidence: Annotated[Path | None, typer.Option(help="The confidence as a GeoTIFF of its own.")] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Polygons: FILE.gpkg or FILE.parquet, with a QGIS style.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Picture of scene, map, legend, scale bar.")] = None,
    stac: Annotated[Path | None, typer.Option(help="STAC Item, FILE.json, with the other products as assets.")] = None,
    crs: Annotated[str | None, typer.Option(help="Reproject the rasters: EPSG:25832.")] = None,
    resolution: Annotated[float | None, typer.Option(help="Pixel size of the rasters, in units of their CRS.")] = None,
    min_area: Annotated[float, typer.Option(min=0, help="Leave out polygons below so many square metres.")] = 0.0,
    simplify: Annotated[
        float, typer.Option(min=0, help="Tolerance for polygons, in units of the CRS; shared borders stay shared.")
    ] = 0.0,
    min_mapping_unit: Annotated[
        str | None,
        typer.Option(help="Areas below take the classes around them, in every product: 50m2, 0.5ha."),
    ] = None,
    majority: Annotated[
        int | None, typer.Option(help="Each pixel takes the most frequent class of so many x so many pixels: 3, 5, …")
    ] = None,
    regularise: Annotated[
        str | None, typer.Option(help="Classes whose polygons get right-angled outlines: building.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Metres by which --regularise may move an outline; default: three pixels."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer of the GeoPackage, whose other layers stay; default: classes.")
    ] = None,
    calibrated: shared.Calibrated = None,
    overwrite: shared.Overwrite = False,
) -> None:
    """Write GIS products of a finished map. An older product is replaced; other files only with --overwrite."""
    named = {"--cog": cog, "--confidence": confidence, "--vectors": vectors, "--png": png, "--stac": stac}
    wanted = {option: path for option, path in named.items() if path is not None}
    if not wanted:
        raise OptionError(
            "nothing to export: name --cog FILE.tif, --vectors FILE.gpkg, --png FILE.png, --stac FILE.json, …"
        )
    if (crs is not None or resolution is not None) and not (cog or confidence):
        raise OptionError("--crs and --resolution are for rasters: name --cog or --confidence too")
    if (min_area or simplify or layer or regularise) and not vectors:
        raise OptionError("--min-area, --simplify, --regularise and --layer are for polygons: name --vectors too")
    if tolerance is not None and regularise is None:
        raise OptionError("--tolerance is for --regularise: name the classes")
    if layer is not None and vectors is not None and vectors.suffix.lower() != ".gpkg":
        raise OptionError("--layer names a layer of a GeoPackage: name --vectors FILE.gpkg")
    from ovrs.clean.cleaning import Cleaning, area_of
    from ovrs.export.run import Request, write_products
    from ovrs.store.map import open_map

    request = Request(
        paths=wanted,
        crs=crs,
        resolution=resolution,
        min_area=min_area,
        simplify=simplify,
        regularise=tuple(n.strip() for n in regularise.split(",")) if regularise else (),
        tolerance=tolerance,
        cleaning=Cleaning(
            majority=majority or 0,
            unit_m2=area_of(min_mapping_unit, "--min-mapping-unit") if min_mapping_unit else 0.0,
        ),
        layer=layer or "classes",
        overwrite=overwrite,
    )
    with open_map(store) as stored:
        mapped = _calibrated(stored, calibrated)
        for line in write_products(mapped, request):
            typer.echo(line)


@app.command(
    examples=("ovrs stats out.zarr", "ovrs stats out.zarr --zones districts.gpkg --zone-name district -o areas.csv")
)
def stats(
    store: Store,
    zones: Annotated[Path | None, typer.Option(help="Vector file: areas for each of its polygons.")] = None,
    zone_name: Annotated[str | None, typer.Option(help="Attribute that names a zone.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="FILE.csv or FILE.parquet; default: print.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print for machines.")] = False,
    calibrated: shared.Calibrated = None,
    overwrite: shared.Overwrite = False,
) -> None:
    """Hectares per class, for the map or per zone; true ground areas in any CRS.

    With --calibrated also the mean confidence: the share of each class that is expected to be right.
    """
    from ovrs.export.stats import check_table, class_areas, write_table, zone_areas
    from ovrs.store.map import open_map

    with open_map(store) as stored:
        mapped, sure = _calibrated(stored, calibrated), calibrated is not None
        if out is not None:
            check_table(mapped, out, zones, overwrite=overwrite)
        rows = class_areas(mapped, sure=sure) if zones is None else zone_areas(mapped, zones, zone_name, sure=sure)
    if out is not None:
        typer.echo(f"statistics: {write_table(rows, out)}")
    elif as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        typer.echo(
            f"{'zone':20} {'class':20} {'hectares':>12} {'percent':>8}" + "  confidence" * (calibrated is not None)
        )
        for row in rows:
            certain = "" if row.get("confidence") is None else f"  {row['confidence']:10.3f}"
            typer.echo(
                f"{shown(row['zone']):20} {shown(row['class']):20} {row['hectares']:12.2f} {row['percent']:8.2f}{certain}"
            )


def _calibrated(mapped: Map, findings: Path | None) -> Map:
    """Open a map, with the temperature of an assessment where one is given."""
    if findings is None:
        return mapped
    from ovrs.assess.findings import temperature_for
    from ovrs.clean.calibrated import calibrated

    return calibrated(mapped, temperature_for(mapped, findings))


@app.command(examples=("ovrs report out.zarr -o out.html", "ovrs report out.zarr -o out.html --accuracy accuracy.json"))
def report(
    store: Store,
    out: Annotated[Path, typer.Option("-o", "--out", help="FILE.html, complete in itself.")],
    accuracy: Annotated[
        Path | None, typer.Option(help="FILE.json of `ovrs assess`: its figures become a part of the page.")
    ] = None,
    overwrite: shared.Overwrite = False,
) -> None:
    """One page about a map: overview, legend with areas, options, warnings, provenance."""
    from ovrs.assess.findings import load_for
    from ovrs.assess.pages import section
    from ovrs.store.map import open_map
    from ovrs.view.page import write_report

    with open_map(store) as mapped:
        told = "" if accuracy is None else section(load_for(mapped, accuracy, "--accuracy"))
        typer.echo(f"report: {write_report(mapped, out, more=told, overwrite=overwrite)}")


@app.command(examples=("ovrs view out.zarr", "ovrs view after.zarr --before before.zarr --port 0"))
def view(
    store: Store,
    before: Annotated[str | None, typer.Option(help="A second map of the same scene, to compare with.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8642,
    host: Annotated[
        str, typer.Option(help="Other machines see the page only when this is not loopback.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Look at a map in the browser; needs no internet. Ends with Ctrl-C."""
    from ovrs.store.map import open_map
    from ovrs.view.server import serve

    serve(open_map(store), None if before is None else open_map(before), host, port, open_browser=browser)


@app.command(
    examples=(
        "ovrs publish out.zarr s3://bucket/maps/out.zarr",
        "ovrs publish out.zarr file:///srv/maps/out.zarr --overwrite",
    )
)
def publish(
    store: Store,
    url: Annotated[str, typer.Argument(help="s3://bucket/NAME.zarr, file:///…, or anything fsspec knows.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another map that is there.")] = False,
) -> None:
    """Copy a finished map to object storage; readers see all of it or nothing. Cut off? The same command goes on."""
    from ovrs.objects.address import place_of
    from ovrs.run import publish as publishing

    source = place_of(store)
    if not isinstance(source, Path):
        raise OptionError(f"{store} is no map of this machine; publish takes a folder, NAME.zarr")
    typer.echo(f"sent {publishing.publish(source, url, overwrite=overwrite)} files to {url}")
