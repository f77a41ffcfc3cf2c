"""The command line: `ovrs map SCENE.tif --classes "…" -o out.zarr`. Thin: every command calls one library function."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovrs import redact
from ovrs.cli import bench as cli_bench
from ovrs.cli import catalog as cli_catalog
from ovrs.cli import collection as cli_collection
from ovrs.cli import edge
from ovrs.cli import models as cli_models
from ovrs.cli import products as cli_products
from ovrs.cli import sam3 as cli_sam3
from ovrs.cli import words as cli_words
from ovrs.errors import EXIT_CODES, OptionError

if TYPE_CHECKING:
    from ovrs.request import Request
    from ovrs.words.vocabulary import Vocabulary

app = edge.App(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Open-vocabulary maps of large georeferenced scenes, adapted to each tile at test time.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
)
app.add_typer(cli_products.app)
app.add_typer(cli_models.app)
app.add_typer(cli_words.app)  # without a name: their commands stand beside ours
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_catalog.app, name="catalog")
app.add_typer(cli_collection.app, name="collection")
app.add_typer(cli_sam3.app, name="sam3")

Store = Annotated[str, typer.Argument(help="A store, NAME.zarr, or its address.", show_default=False)]


@app.callback()
def _global(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="OVRS_DEBUG", help="Show tracebacks and debug logs.")
    ] = False,
) -> None:
    edge.set_up_logging(debug=debug)


@app.command("map")
def map_command(
    scene: Annotated[str, typer.Argument(help="A raster GDAL can open, or with --catalog the name of a scene.")],
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="The store to write, NAME.zarr. With --catalog: its output root.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help='Class names in plain words: "building, road, water".')] = None,
    vocabulary: Annotated[
        str | None, typer.Option(help="A shipped vocabulary (`ovrs vocabulary list`) or a YAML file.")
    ] = None,
    catalog: Annotated[Path | None, typer.Option(help="A data_catalog.yaml that names the scene.")] = None,
    bands: Annotated[str | None, typer.Option(help="One or three band numbers used as RGB: 4,3,2.")] = None,
    gsd: Annotated[
        float | None, typer.Option(help="Metres per pixel of the grid to work on (the models know 0.1 to 1 m).")
    ] = None,
    bbox: Annotated[str | None, typer.Option(help="left,bottom,right,top in the scene's CRS.")] = None,
    aoi: Annotated[Path | None, typer.Option(help="Vector file; only inside its polygons is mapped.")] = None,
    stretch: Annotated[
        str | None, typer.Option(help="Percentiles that become 0 and 255: 2,98. Default for all types but uint8.")
    ] = None,
    nodata: Annotated[float | None, typer.Option(help="Overrides the source's nodata value.")] = None,
    allow_ungeoreferenced: Annotated[
        bool, typer.Option("--allow-ungeoreferenced", help="Map a raster that has no place on the ground.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="bundled, an open_clip name, a directory in open_clip's format, sam3, or a directory of SAM 3."
        ),
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="open_clip's pretrained tag, or a file of weights.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 for the vision tower.")] = None,
    compile_model: Annotated[
        bool, typer.Option("--compile", help="Compile the vision tower: slower start, faster tiles.")
    ] = False,
    crop: Annotated[int | None, typer.Option(help="Side of the model's window in pixels.")] = None,
    stride: Annotated[int | None, typer.Option(help="Distance between windows.")] = None,
    zoom: Annotated[
        float | None, typer.Option(help="Enlarge windows before the model sees them: finer, slower.")
    ] = None,
    wide: Annotated[
        str | None,
        typer.Option(help="Look also through windows over 2 x 2, 3 x 3 … of the ordinary ones: 2,3 or none."),
    ] = None,
    turned: Annotated[
        bool | None, typer.Option("--turned/--not-turned", help="Show wider windows upside down or mirrored.")
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="Metres per pixel, if the scene does not tell: models choose windows by it.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `ovrs methods`.")] = None,
    dense: Annotated[str | None, typer.Option(help="Dense features, see `ovrs methods`.")] = None,
    adaptation: Annotated[
        str | None, typer.Option(help="tile, or scene: one calibration for all tiles (TMPA).")
    ] = None,
    upsampler: Annotated[str | None, typer.Option(help="bilinear, jbu_one or jbu_stack.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A paper's settings, and its words if none are given: segearth/loveda (see `ovrs methods`)."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other method option, KEY=VALUE; may be repeated.")
    ] = None,
    crop_blend: Annotated[str | None, typer.Option(help="taper, or mean as in the papers.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimisation steps per tile.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Initial visual bias of TMPA.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Background probability threshold.")] = None,
    executor: Annotated[str | None, typer.Option(help="serial, threads or dask.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads, or local Dask processes.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, tcp://host:8786; implies --executor dask.")
    ] = None,
    block: Annotated[int | None, typer.Option(help="Side of a block in tile pitches.")] = None,
    zarr_format: Annotated[int | None, typer.Option(help="3, or 2 for GIS with GDAL before 3.11.")] = None,
    shards: Annotated[
        bool | None,
        typer.Option(help="One file per block and array instead of one per chunk. [default: in object storage]"),
    ] = None,
    staging: Annotated[
        Path | None,
        typer.Option(
            envvar="OVRS_STAGING",
            help="Make a map for a URL in this folder and copy it: for storage without conditional writes.",
        ),
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Also store every class's score.")] = False,
    allow_holes: Annotated[bool, typer.Option("--allow-holes", help="Finish although blocks failed.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard what is at the output and begin anew.")
    ] = False,
) -> None:
    """Map a scene into a Zarr store. Interrupted? The same command goes on where it stopped."""
    from ovrs import pipeline
    from ovrs.methods.preset import method_options, parse_settings
    from ovrs.options import merged

    reading = given(
        bands=_numbers(bands, "--bands", int),
        gsd=gsd,
        bbox=_numbers(bbox, "--bbox", float, 4),
        aoi=aoi,
        stretch=_numbers(stretch, "--stretch", float, 2),
        nodata=nodata,
        allow_ungeoreferenced=allow_ungeoreferenced or None,
    )
    looking = given(
        model=model,
        pretrained=pretrained,
        device=device,
        dtype=dtype,
        compile=compile_model or None,
        crop=crop,
        stride=stride,
        zoom=zoom,
        wide=() if wide == "none" else _numbers(wide, "--wide", int),
        turned=turned,
        pixel_size=pixel_size,
    )
    deciding = given(
        method=method,
        dense=dense,
        adaptation=adaptation,
        upsampler=upsampler,
        crop_blend=crop_blend,
        steps=steps,
        alpha_init=alpha,
        threshold=threshold,
    )
    running = given(
        block_pitches=block,
        zarr_format=zarr_format,
        shards=shards,
        store_scores=scores or None,
        executor=executor or ("dask" if scheduler else None),
        workers=workers,
        scheduler=scheduler,
        allow_holes=allow_holes or None,
    )
    chosen = merged({} if preset is None else method_options(preset), parse_settings(settings or []))
    told = {"scene": reading, "model": looking, "method": merged(chosen, deciding), "run": running}
    requests = _requests(scene, out, catalog, _words(classes, vocabulary), preset, told)
    if requests[0].words.unknown_classes:
        unknown = ", ".join(requests[0].words.unknown_classes)
        typer.echo(f"note: no library knows {unknown}; asked for by name alone (recorded in the map)", err=True)
    for request in requests:
        with _progress() as show:
            facts = pipeline.map(request, overwrite=overwrite, progress=show, staging=staging)
        _print_areas(facts)
        typer.echo(f"map: {request.target}")


def _requests(
    scene: str,
    out: str | None,
    catalog: Path | None,
    words: Vocabulary | None,
    preset: str | None,
    told: dict[str, dict[str, Any]],
) -> list[Request]:
    """What was asked for, by name in a catalog or in full."""
    from ovrs import options
    from ovrs.collection import catalog as catalogs
    from ovrs.methods import published
    from ovrs.request import Request, words_from_names

    if catalog is None:
        if out is None:
            raise OptionError("name the store to write: -o NAME.zarr")
        own = words or (None if preset is None else published.vocabulary_of(preset))
        found = [
            Request(uri=scene, words=own or words_from_names(None, None), options=options.build(**told), target=out)
        ]
    else:
        found = catalogs.load(catalog).requests(scene, words=words, told=told)
    if out is not None and len(found) > 1:
        raise OptionError(f"scene {scene} is {len(found)} files; leave -o out, the catalog's output root is used")
    if preset is not None and (words is not None or catalog is not None):
        found = [replace(request, words=published.given(request.words, preset)) for request in found]
    return found if out is None else [replace(found[0], target=out)]


def _words(classes: str | None, vocabulary: str | None) -> Vocabulary | None:
    """The classes that were named; None where a catalog or a preset may name them."""
    from ovrs.request import words_from_names

    return None if classes is None and vocabulary is None else words_from_names(classes, vocabulary)


def given(**values: Any) -> dict[str, Any]:
    """What was named on the command line."""
    return {name: value for name, value in values.items() if value is not None}


@app.command()
def resume(store: Store) -> None:
    """Go on with an interrupted run."""
    from ovrs import pipeline

    with _progress() as show:
        facts = pipeline.resume(store, progress=show)
    _print_areas(facts)
    typer.echo(f"map: {store}")


@app.command()
def status(store: Store) -> None:
    """How far a run is; lists failed blocks. Loads no model."""
    from ovrs.objects.address import place_of
    from ovrs.run.report import status_of

    report = status_of(place_of(store))
    typer.echo(report.text)
    if not report.complete:
        raise typer.Exit(4)


@app.command()
def verify(store: Store) -> None:
    """Compare every file of a map with the checksums of its run, or an unfinished map's blocks with their markers.

    Exit code 0: a finished map, all as written. 3: something differs, and is named. 4: not finished, so far as written.
    """
    from ovrs.objects.address import place_of
    from ovrs.run import verify as room

    report = room.check(place_of(store))
    if report.problems:
        listed = "\n".join(f"  {problem}" for problem in report.problems)
        way = f"`ovrs repair {store}`" if report.finished else f"`ovrs resume {store}`"
        typer.echo(f"{store}: {len(report.problems)} damaged\n{listed}\n{way} computes them again", err=True)
        raise typer.Exit(3)
    if not report.finished:
        typer.echo(f"{store} is not finished: {report.compared} of {report.blocks} blocks are done and match")
        raise typer.Exit(4)
    typer.echo(f"all {report.compared} files match their checksums")


@app.command()
def repair(store: Store) -> None:
    """Compute, build or write again what `ovrs verify` finds damaged. Needs the scene."""
    from ovrs import repair as room

    with _progress() as show:
        found = room.repair(store, progress=show)
    typer.echo("\n".join([f"repaired {problem.path}" for problem in found] or [f"{store}: nothing was damaged"]))


@app.command()
def info(store: Store, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """What made a map, and what is in it."""
    from ovrs.run.report import info_of
    from ovrs.store.map import open_map

    with open_map(store) as mapped:
        typer.echo(info_of(mapped, as_json=as_json))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory for scene, map and products.")] = Path("demo"),
) -> None:
    """Generate a scene, map it with the bundled model, export it, and compare with the exact labels."""
    from ovrs.demo.run import run_demo

    with _progress() as show:
        lines = run_demo(out, progress=show)
    typer.echo("\n".join(lines))


def _numbers(
    text: str | None, option: str, kind: type[int] | type[float], count: int | None = None
) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} takes numbers separated by commas, got {text!r}") from error
    if count is not None and len(values) != count:
        raise OptionError(f"{option} takes {count} numbers, got {len(values)}: {text!r}")
    if not all(math.isfinite(value) for value in values):
        raise OptionError(f"{option} takes finite numbers, got {text!r}")
    return values


def _print_areas(facts: dict[str, Any]) -> None:
    from ovrs.run.report import area_lines
    from ovrs.store.record import RunRecord

    typer.echo("\n".join(area_lines(RunRecord.model_validate(facts))))


def _progress() -> Any:
    from ovrs.run.report import progress_bar

    return progress_bar()


def main() -> None:
    """Entry point: every error becomes one message and its exit code (`ovrs.errors.EXIT_CODES`)."""
    with redact.guarded_output():
        sys.exit(edge.run(app))
