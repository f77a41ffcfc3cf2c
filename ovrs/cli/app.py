"""The command line: `ovrs map SCENE.tif --classes "…" -o out.zarr`. Thin: every command calls one library function."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovrs import __version__, redact
from ovrs.cli import assess as cli_assess
from ovrs.cli import bench as cli_bench
from ovrs.cli import catalog as cli_catalog
from ovrs.cli import collection as cli_collection
from ovrs.cli import complete, edge, fields, shared
from ovrs.cli import models as cli_models
from ovrs.cli import preview as cli_preview
from ovrs.cli import products as cli_products
from ovrs.cli import qgis as cli_qgis
from ovrs.cli import sam3 as cli_sam3
from ovrs.cli import words as cli_words
from ovrs.engine import allocator
from ovrs.errors import EXIT_CODES, OptionError

if TYPE_CHECKING:
    from ovrs.request import Request
    from ovrs.words.vocabulary import Vocabulary

app = edge.App(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Open-vocabulary maps of large georeferenced scenes, adapted at test time.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
)
app.add_typer(cli_products.app)
app.add_typer(cli_preview.app)
app.add_typer(cli_assess.app)
app.add_typer(cli_models.app)
app.add_typer(cli_words.app)  # without a name: their commands stand beside ours
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_catalog.app, name="catalog")
app.add_typer(cli_collection.app, name="collection")
app.add_typer(cli_sam3.app, name="sam3")
app.add_typer(cli_qgis.app, name="qgis")

Store = Annotated[str, typer.Argument(help="A store, NAME.zarr, or its address.", show_default=False)]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ovrs {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="OVRS_DEBUG", help="Show tracebacks and debug logs.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    edge.set_up_logging(debug=debug)


@app.command(
    "map",
    cls=fields.Spelled,
    epilog="Every other option: --set SECTION.KEY=VALUE; `ovrs options` lists them.",
    examples=(
        'ovrs map SCENE.tif --classes "building, road, water" -o out.zarr',
        "ovrs map tiles/*.tif --vocabulary landcover --gsd 0.3 --bbox 500000,5599000,501000,5600000 -o part.zarr",
    ),
)
def map_command(
    scenes: shared.Scenes,
    bands: shared.Bands = None,
    gsd: shared.Gsd = None,
    bbox: Annotated[str | None, fields.flag("scene.bbox")] = None,
    aoi: Annotated[str | None, fields.flag("scene.aoi")] = None,
    acquired: Annotated[str | None, fields.flag("scene.acquired")] = None,
    classes: shared.Classes = None,
    vocabulary: shared.Vocabulary = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A paper's settings, and its words if none are given: segearth/loveda (see `ovrs methods`).",
            rich_help_panel="Words",
            autocompletion=complete.presets,
        ),
    ] = None,
    model: shared.Model = None,
    pretrained: shared.Pretrained = None,
    device: shared.Device = None,
    method: shared.Method = None,
    examples: shared.Examples = None,
    settings: shared.Settings = None,
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            help="The store to write, NAME.zarr. With --catalog: its output root.",
            rich_help_panel="Run",
        ),
    ] = None,
    catalog: Annotated[
        Path | None, typer.Option(help="A data_catalog.yaml; SCENE is then a name in it.", rich_help_panel="Run")
    ] = None,
    staging: Annotated[
        Path | None,
        typer.Option(
            envvar="OVRS_STAGING",
            help="Make a map for a URL in this folder and copy it: for storage without conditional writes.",
            rich_help_panel="Run",
        ),
    ] = None,
    executor: Annotated[str | None, fields.flag("run.executor")] = None,
    workers: Annotated[str | None, fields.flag("run.workers")] = None,
    overwrite: shared.BeginAnew = False,
    progress: shared.Progress = "auto",
) -> None:
    """Map a scene into a Zarr store. Interrupted? The same command goes on where it stopped."""
    from ovrs import pipeline
    from ovrs.methods.preset import method_options

    flags = {
        "scene.bands": bands,
        "scene.gsd": gsd,
        "scene.bbox": bbox,
        "scene.aoi": aoi,
        "scene.acquired": acquired,
        "model.model": model,
        "model.pretrained": pretrained,
        "model.device": device,
        "method.method": method,
        "method.examples": examples,
        "run.executor": executor,
        "run.workers": workers,
    }
    told = fields.told(flags, settings or [])
    if preset is not None:
        told = {**told, "method": {**method_options(preset), **told["method"]}}
    requests = _requests(scenes, out, catalog, _words(classes, vocabulary), preset, told)
    if requests[0].words.unknown_classes:
        unknown = ", ".join(requests[0].words.unknown_classes)
        typer.echo(f"note: no library knows {unknown}; asked for by name alone (recorded in the map)", err=True)
    for request in requests:
        with _progress(progress) as show:
            facts = pipeline.map(request, overwrite=overwrite, progress=show, staging=staging)
        _print_areas(facts)
        typer.echo(f"map: {request.target}")


@app.command(
    examples=(
        "ovrs teach out.zarr --examples clicks.gpkg -o better.zarr",
        "ovrs teach out.zarr --examples 'project.gpkg|layer=clicks'",
    )
)
def teach(
    store: Store,
    examples: Annotated[
        Path, typer.Option(help="Points or polygons with a class, some ten a class; all that the new map is to know.")
    ],
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="The store to write, or its address; default: NAME-taught.zarr.")
    ] = None,
    overwrite: shared.BeginAnew = False,
    progress: shared.Progress = "auto",
) -> None:
    """Map a scene again, as a map was made, with examples of its classes. Interrupted? The same command goes on."""
    from ovrs import pipeline
    from ovrs.objects.address import place_of
    from ovrs.run.again import taught_request

    made = place_of(store)
    other = made.with_name(f"{made.name.removesuffix('.zarr')}-taught.zarr") if out is None else place_of(out)
    request = taught_request(made, examples, other)
    with _progress(progress) as show:
        facts = pipeline.map(request, overwrite=overwrite, progress=show)
    _print_areas(facts)
    learned: Any = facts.get("scene_adaptation")  # a run with examples has one
    typer.echo(f"examples: {learned['taught']['places']} places, {learned['taught']['event']}")
    typer.echo(f"map: {request.target}")


@app.command()
def options(
    method: Annotated[
        str | None, typer.Argument(help="Only what this method reads, beside scene, model and run.")
    ] = None,
) -> None:
    """List every option as `--set` takes it, with its default and what it means."""
    from ovrs import options
    from ovrs.methods import registry

    own = None if method is None else registry.method(method).fields
    for key, option in options.listing().items():
        if own is not None and option.methods and key.partition(".")[2] not in own:
            continue
        users = f" [{', '.join(option.methods)}]" if option.methods and own is None else ""
        typer.echo(f"{key}={_plain(option.default)}{users}\n    {option.help}")


def _plain(value: Any) -> str:
    """Return a default as `--set` takes it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "none"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not isinstance(value, dict) else "{}"


def _requests(
    scenes: list[str],
    out: str | None,
    catalog: Path | None,
    words: Vocabulary | None,
    preset: str | None,
    told: dict[str, dict[str, object]],
) -> list[Request]:
    """Return the requests, by name in a catalog or in full."""
    from ovrs import options
    from ovrs.collection import catalog as catalogs
    from ovrs.methods import published
    from ovrs.request import Request, words_from_names

    if catalog is None:
        if out is None:
            raise OptionError("name the store to write: -o NAME.zarr")
        own = words or (None if preset is None else published.vocabulary_of(preset))
        asked = own or words_from_names(None, None)
        found = [
            Request(uri=scenes[0], others=tuple(scenes[1:]), words=asked, options=options.build(**told), target=out)
        ]
    else:
        if len(scenes) > 1:
            raise OptionError("--catalog takes the name of one scene")
        found = catalogs.load(catalog).requests(scenes[0], words=words, told=told)
    if out is not None and len(found) > 1:
        raise OptionError(f"scene {scenes[0]} is {len(found)} files; leave -o out, the catalog's output root is used")
    if preset is not None and (words is not None or catalog is not None):
        found = [replace(request, words=published.given(request.words, preset)) for request in found]
    return found if out is None else [replace(found[0], target=out)]


def _words(classes: str | None, vocabulary: str | None) -> Vocabulary | None:
    """Return the named classes; None where a catalog or a preset may name them."""
    from ovrs.request import words_from_names

    return None if classes is None and vocabulary is None else words_from_names(classes, vocabulary)


@app.command()
def resume(store: Store, progress: shared.Progress = "auto") -> None:
    """Go on with an interrupted run."""
    from ovrs import pipeline

    with _progress(progress) as show:
        facts = pipeline.resume(store, progress=show)
    _print_areas(facts)
    typer.echo(f"map: {store}")


@app.command()
def status(store: Store, as_json: shared.AsJson = False) -> None:
    """How far a run is; lists failed blocks. Loads no model."""
    from ovrs.objects.address import place_of
    from ovrs.run.report import status_of

    report = status_of(place_of(store))
    typer.echo(json.dumps(report.facts, indent=1) if as_json else report.text)
    if not report.complete:
        raise typer.Exit(4)


@app.command()
def verify(store: Store) -> None:
    """Compare every file of a map with the checksums of its run, or an unfinished map's blocks with their markers.

    Exit code 0: a finished map, all as written. 3: something differs, and is named. 4: not finished, so far as written.
    """
    from ovrs.objects.address import place_of
    from ovrs.run.verify import check

    report = check(place_of(store))
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
    from ovrs import repair as repairing

    with _progress() as show:
        found = repairing.repair(store, progress=show)
    typer.echo("\n".join([f"repaired {problem.path}" for problem in found] or [f"{store}: nothing was damaged"]))


@app.command()
def info(store: Store, as_json: shared.AsJson = False) -> None:
    """Tell what made a map, and what is in it."""
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


def _print_areas(facts: dict[str, object]) -> None:
    from ovrs.run.report import area_lines
    from ovrs.store.cautions import cautions
    from ovrs.store.record import RunRecord

    record = RunRecord.model_validate(facts)
    typer.echo("\n".join(area_lines(record)))
    for text in cautions(record):
        typer.echo(f"caution: {text}")


def _progress(form: str = "auto") -> Any:
    from ovrs.run.meter import metered

    return metered(form)


def main() -> None:
    """Entry point: every error becomes one message and its exit code (`ovrs.errors.EXIT_CODES`)."""
    allocator.keep_freed_memory()  # first of all: threads that exist already keep heaps of their own
    with redact.guarded_output():
        code = edge.run(app)
        gc.freeze()  # or Python looks for cycles among all objects of torch several times before it ends
        sys.exit(code)
