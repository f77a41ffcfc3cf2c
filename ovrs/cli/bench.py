"""Commands that measure accuracy on labelled sets."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from ovrs.cli.edge import App
from ovrs.errors import OptionError

app = App(help="Accuracy on labelled sets, and the papers' tables.", no_args_is_help=True)

Results = Annotated[Path, typer.Argument(help="Folder of results.")]


@app.command()
def accuracy(
    dataset: Annotated[str, typer.Option(help="Labelled sets of the catalog, separated by commas.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of results; what is there is kept and continued.")],
    method: Annotated[
        str | None, typer.Option(help="Methods separated by commas; options joined by +: none+prompts=names,tmpa.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Presets as rows, separated by commas: segearth (each set's entry), mlmp/full+layers=1. They bring "
            "their paper's words and image sizes."
        ),
    ] = None,
    own_protocol: Annotated[
        bool, typer.Option("--own-protocol", help="Show presets the images as they are, not as their papers do.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Try the command with tiny networks of random weights on two small images of each set; marked as such.",
        ),
    ] = False,
    model: Annotated[
        str, typer.Option(help="Models of the catalog, or what --model of `ovrs map` takes; commas.")
    ] = "bundled",
    corruption: Annotated[str, typer.Option(help="none, all (clean and the fifteen), or names.")] = "none",
    severity: Annotated[str, typer.Option(help="1 to 5, separated by commas.")] = "5",
    images: Annotated[int | None, typer.Option(min=1, help="Only so many images of each set, evenly spread.")] = None,
    part: Annotated[int, typer.Option(min=64, help="Larger images are cut into parts of at most this side.")] = 1024,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes.")] = 1,
    panels: Annotated[int, typer.Option(min=0, help="Also draw so many images with label and maps.")] = 0,
    catalog: Annotated[Path, typer.Option(help="Names the data sets.")] = Path("data_catalog.yaml"),
) -> None:
    """Score methods on labelled sets; interrupted, the same command goes on."""
    from ovrs.bench import accuracy as bench
    from ovrs.bench import cells, dryrun, plots, report, rows
    from ovrs.bench.layouts import LabelledSet, open_set
    from ovrs.collection import catalog as catalog_room
    from ovrs.options import ModelOptions

    known = catalog_room.load(catalog)
    methods = [rows.parse_row(r.strip()) for r in (method or "").split(",") if r.strip()]
    presets = [p.strip() for p in (preset or "").split(",") if p.strip()]
    if not methods and not presets:
        raise OptionError("name what to score: --method none,tmpa or --preset segearth/loveda")
    models = [known.models.get(m.strip()) or ModelOptions(model=m.strip()) for m in model.split(",")]
    levels = _levels(severity)
    kinds = cells.corruptions(corruption)
    images = dryrun.IMAGES if dry_run and images is None else images
    work: dict[str, list[tuple[rows.Row, LabelledSet]]] = {}
    for name in dataset.split(","):  # all before the first image, so that a wrong name costs no time
        entry = known.dataset(name.strip())
        words = None if entry.vocabulary is None else known.vocabulary(entry.vocabulary)
        data = open_set(name.strip(), entry, Path(known.resolve(entry.root)), words)
        brought = [rows.preset_row(p, data, as_published=not own_protocol) for p in presets]
        work[data.name] = [*((row, data) for row in methods), *brought]
    for name, mine in work.items():
        clean = []
        for chosen, (row, data) in product(models, mine):
            for kind in kinds:
                for level in [0] if kind == cells.CLEAN else levels:
                    cell = cells.Cell(data, row, chosen, kind, level, part, dry_run)
                    clean += [cell] if kind == cells.CLEAN else []
                    score = bench.run_cell(cell, out, images=images, workers=workers)
                    value = report.headline(cell.facts(), score)
                    typer.echo(f"{name:16} {kind:18} {level}  {row.label:32} {value:6.2f}")
        if panels and clean:
            typer.echo(f"panels: {plots.panels(clean, out, panels)}")
    for path in report.write_report(out):
        typer.echo(f"written: {path}")


def _levels(severity: str) -> list[int]:
    try:
        levels = [int(s) for s in severity.split(",")]
    except ValueError:
        levels = [0]
    if not all(1 <= level <= 5 for level in levels):
        raise OptionError(f"--severity takes numbers from 1 to 5 separated by commas, got {severity!r}")
    return levels


@app.command("report")
def report_command(results: Results) -> None:
    """Write table, page and plots from results again."""
    from ovrs.bench import report

    for path in report.write_report(results):
        typer.echo(f"written: {path}")


@app.command()
def table(
    name: Annotated[str | None, typer.Argument(help="A table; without a name all are listed.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder of our results.")] = None,
) -> None:
    """Quote a paper's table, with own figures beside it where results exist, and the commands that make them."""
    from ovrs.bench.papers import side_by_side, tables

    if name is None:
        typer.echo("\n".join(f"{known:20} {table.title}" for known, table in tables().items()))
    else:
        typer.echo(side_by_side(name, results))


@app.command()
def datasets() -> None:
    """List the layouts of labelled sets that can be read, and how to get each set."""
    from ovrs.bench.layouts import layouts

    for name, layout in layouts().items():
        typer.echo(f"{name:16} {layout.title}\n{'':17}{layout.licence}; {layout.obtain}")
