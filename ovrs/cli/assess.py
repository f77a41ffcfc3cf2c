"""Commands that say how good a map is: draw a sample, compare with a reference or with another map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ovrs.cli import shared
from ovrs.cli.edge import App

if TYPE_CHECKING:
    from ovrs.assess.change import Change

app = App()

Store = Annotated[Path, typer.Argument(help="A finished store, NAME.zarr.", show_default=False)]


@app.command(
    examples=(
        "ovrs sample out.zarr --per-class 50 -o points.gpkg",
        "ovrs sample out.zarr --total 300 --chips chips -o points.gpkg",
    )
)
def sample(
    store: Store,
    out: Annotated[Path, typer.Option("-o", "--out", help="FILE.gpkg, with a QGIS style.")],
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Points for each class of the map; default: 50, or 20 with --total.")
    ] = None,
    total: Annotated[
        int | None, typer.Option(min=1, help="Points in all; what is left goes to classes in proportion to their area.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Start of the random numbers.")] = 0,
    chips: Annotated[
        Path | None, typer.Option(help="Folder for a picture of each point's surroundings; needs the scene.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file, its labels included.")] = False,
) -> None:
    """Draw stratified random points to label; fill in their attribute `reference`, then give them to `ovrs assess`."""
    from ovrs.assess.points_file import write_sample
    from ovrs.store.map import open_map

    with open_map(store) as mapped:
        made, points = write_sample(
            mapped, out, per_class=per_class, total=total, seed=seed, chips=chips, overwrite=overwrite
        )
        for name, number, pixels in zip(mapped.names, points.allocation, points.strata.pixels, strict=True):
            typer.echo(f"{name:20} {number:6d} points of {pixels} pixels")
    typer.echo(f"rule: {points.rule}")
    typer.echo(f"points: {made.path} ({made.features}; fill in the attribute `reference`)")


@app.command(
    examples=(
        "ovrs assess out.zarr --reference points.gpkg -o accuracy.json -o accuracy.md",
        "ovrs assess out.zarr --reference labels.tif --legend 1=building,2=road",
    )
)
def assess(
    store: Store,
    reference: Annotated[
        str, typer.Option(help="Points of `ovrs sample`, other points, polygons, or a raster of labels.")
    ],
    field: Annotated[
        str | None, typer.Option(help="Attribute with the class; default: reference, class, or the only one.")
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Points without a design are a simple random sample of the map.")
    ] = False,
    legend: Annotated[
        str | None, typer.Option(help="Classes of a raster's values: 1=building,2=road. Default: its own tags CLASS_n.")
    ] = None,
    out: Annotated[
        list[Path] | None, typer.Option("-o", "--out", help="FILE.json, FILE.md or FILE.csv; may be repeated.")
    ] = None,
    overwrite: shared.Overwrite = False,
) -> None:
    """Accuracy, areas with 95 % intervals, and what the confidence is worth."""
    from ovrs.assess import findings, pages
    from ovrs.store.map import open_map

    with open_map(store) as mapped:
        pages.check_files(mapped, out or [], reference, overwrite=overwrite)
        found = findings.assess(mapped, reference, field=field, random=random, legend=legend)
        typer.echo(pages.markdown(found).partition("\n")[2])
        for path in out or []:
            typer.echo(f"accuracy: {pages.write(found, path)}")


@app.command(
    examples=(
        "ovrs diff 2018.zarr 2024.zarr --areas change.csv",
        "ovrs diff 2018.zarr 2024.zarr --raster change.tif --vectors change.gpkg --mask sure.tif --sure 0.6",
    )
)
def diff(
    before: Annotated[Path, typer.Argument(help="The older map, NAME.zarr.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="The newer map, NAME.zarr.", show_default=False)],
    areas: Annotated[Path | None, typer.Option(help="FILE.csv: hectares from each class to each class.")] = None,
    raster: Annotated[Path | None, typer.Option(help="FILE.tif: a class for each change, with colours.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="FILE.gpkg or FILE.parquet: polygons of changes.")] = None,
    mask: Annotated[Path | None, typer.Option(help="FILE.tif: where both maps are sure.")] = None,
    sure: Annotated[float, typer.Option(help="Confidence that both maps must have to be sure, 0 to 1.")] = 0.5,
    min_area: Annotated[float, typer.Option(min=0, help="Leave out polygons below so many square metres.")] = 0.0,
    overwrite: shared.Overwrite = False,
) -> None:
    """Tell what changed from one map to another, class by class, on the grid of the coarser map.

    Example: ovrs diff 2018.zarr 2024.zarr --areas change.csv --raster change.tif --vectors change.gpkg --mask sure.tif
    """
    from ovrs.assess.change import check_table, compared, write_table
    from ovrs.export import target
    from ovrs.export.cog import write_cog
    from ovrs.export.product import CLASSES, POLYGONS
    from ovrs.export.qml import write_qml
    from ovrs.export.vectors import check_vectors, write_vectors
    from ovrs.store.map import open_map

    named = {"--areas": areas, "--raster": raster, "--vectors": vectors, "--mask": mask}
    paths = {option: path for option, path in named.items() if path is not None}
    with open_map(before) as first, open_map(after) as second:
        target.check_distinct(paths)
        for mapped in (first, second):
            for option, kind in (("--raster", CLASSES), ("--mask", CLASSES), ("--vectors", POLYGONS)):
                if option in paths:
                    target.check(mapped, paths[option], kind, overwrite=overwrite)
        if areas is not None:
            check_table(first, second, areas, overwrite=overwrite)
        if vectors is not None:
            check_vectors(first, vectors, min_area=min_area, layer="changes", overwrite=overwrite)
        with compared(first, second, sure=sure) as change:
            _print_change(change)
            if areas is not None:
                typer.echo(f"areas: {write_table(change.rows, areas)}")
            for path, mapped in ((raster, change.raster), (mask, change.mask)):
                if path is not None:
                    typer.echo(f"raster: {write_cog(mapped, path, overwrite=overwrite).path}")
                    typer.echo(f"style: {write_qml(mapped, path, overwrite=overwrite)}")
            if vectors is not None:
                made = write_vectors(change.changed, vectors, min_area=min_area, layer="changes", overwrite=overwrite)
                typer.echo(f"vectors: {made.path} ({made.features} polygons)")


def _print_change(change: Change) -> None:
    changed = sum(r["hectares"] for r in change.rows if r["from"] != r["to"])
    typer.echo(f"{'from':20} {'to':20} {'hectares':>12} {'percent':>8} {'sure':>12}")
    for row in change.rows:
        typer.echo(
            f"{row['from']:20} {row['to']:20} {row['hectares']:12.2f} {row['percent']:8.2f} {row['sure_hectares']:12.2f}"
        )
    share = 100 * changed / change.hectares if change.hectares else 0.0
    typer.echo(f"changed: {changed:.2f} of {change.hectares:.2f} hectares ({share:.2f} percent)")
