"""Commands that say how good a map is: draw a sample, compare with a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ovrs.cli.edge import App

app = App()

Store = Annotated[Path, typer.Argument(help="A finished store, NAME.zarr.", show_default=False)]


@app.command()
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
    """Draw stratified random points to label; fill in their attribute `reference`, then give them to `ovrs assess`.

    Example: ovrs sample out.zarr --per-class 50 -o points.gpkg
    """
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


@app.command()
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace also files that ovrs did not write.")] = False,
) -> None:
    """Accuracy, areas with 95 % intervals, and what the confidence is worth.

    Example: ovrs assess out.zarr --reference points.gpkg -o accuracy.json -o accuracy.md
    """
    from ovrs.assess import pages
    from ovrs.assess.findings import assess as compare
    from ovrs.store.map import open_map

    with open_map(store) as mapped:
        pages.check_files(mapped, out or [], reference, overwrite=overwrite)
        findings = compare(mapped, reference, field=field, random=random, legend=legend)
        typer.echo(pages.markdown(findings).partition("\n")[2])
        for path in out or []:
            typer.echo(f"accuracy: {pages.write(findings, path)}")
