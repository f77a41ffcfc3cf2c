"""Commands about `data_catalog.yaml`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ovrs.cli.edge import App

app = App(help="Scenes, collections, models, data sets and outputs by name.", no_args_is_help=True)

File = Annotated[Path, typer.Option("--catalog", help="The catalog.")]
Place = Annotated[Path, typer.Argument(help="The catalog.")]
DEFAULT = Path("data_catalog.yaml")


@app.command()
def check(path: Place = DEFAULT) -> None:
    """Check a catalog; every fault is named with its line."""
    from ovrs.collection import catalog as catalogs

    found = catalogs.load(path)
    counts = [f"{len(getattr(found, s))} {s}" for s in ("scenes", "collections", "vocabularies", "models", "datasets")]
    typer.echo(f"{path}: {', '.join(counts)}, in order")


@app.command("list")
def list_command(
    path: Place = DEFAULT, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False
) -> None:
    """Everything in a catalog, a line each."""
    from ovrs.collection import catalog as catalogs

    found = catalogs.load(path)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=1))
        return
    for name, scene in sorted(found.scenes.items()):
        typer.echo(f"scene       {name:16} {scene.vocabulary:12} {found.resolve(scene.path)}  {scene.title}")
    for name, entry in sorted(found.collections.items()):
        where = found.resolve(entry.pattern) if entry.pattern else f"{entry.stac.url if entry.stac else ''}"
        typer.echo(f"collection  {name:16} {entry.vocabulary:12} {where}  {entry.title}")
    for name, model in sorted(found.models.items()):
        typer.echo(f"model       {name:16} {model.model}")
    for name, data in sorted(found.datasets.items()):
        typer.echo(f"data set    {name:16} {data.layout:12} {found.resolve(data.root)}  {data.licence}")
    typer.echo(f"outputs     {found.resolve(found.outputs.root)}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A scene, collection, model or data set.")], path: File = DEFAULT
) -> None:
    """One entry with everything it says, and what a scene's path finds."""
    from ovrs.collection import catalog as catalogs
    from ovrs.errors import CatalogError

    found = catalogs.load(path)
    sections = {s: getattr(found, s) for s in ("scenes", "collections", "models", "datasets")}
    mine = {s: e[name].model_dump(mode="json", exclude_unset=True) for s, e in sections.items() if name in e}
    if not mine:
        known = ", ".join(sorted({n for e in sections.values() for n in e})) or "nothing"
        raise CatalogError(f"{path} has no {name!r}; it has: {known}")
    if name in found.scenes:
        mine["files"] = [uri for _, uri in found.uris(name)]
    typer.echo(json.dumps(mine, indent=1))


@app.command()
def schema() -> None:
    """JSON schema of the file, for editors: put `# yaml-language-server: $schema=FILE` on top of the catalog."""
    from ovrs.collection import catalog as catalogs

    typer.echo(json.dumps(catalogs.schema(), indent=1))
