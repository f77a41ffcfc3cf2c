"""Commands about the images of collections: how they stand, and what a person decides about those that fail."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from ovrs.cli.catalog import DEFAULT, File
from ovrs.cli.edge import App
from ovrs.errors import IncompleteRunError

if TYPE_CHECKING:
    from ovrs.collection.deliveries import Delivery

app = App(help="Images of collections: which are mapped, which wait, which have failed.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="An image, or COLLECTION/IMAGE, or a collection for all that have failed.")]
Only = Annotated[str | None, typer.Option("--collection", help="Look in this collection only.")]


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="A collection or an image. Default: all collections.")] = None,
    path: File = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="For machines; done images, too.")] = False,
) -> None:
    """How many images are mapped, and a line for each that is not. Opens no image.

    Exit code 0: all are mapped or left out. 4: some are not mapped yet.
    """
    from ovrs.collection.standing import Collections, Versions

    known = Collections(path)
    found = known.of(name)
    whole = name is None or name in known.catalog.collections
    if as_json:
        versions = Versions(known.ledger)
        typer.echo(json.dumps([versions.facts(d) for ds in found.values() for d in ds], indent=1))
    elif whole:
        for collection, deliveries in found.items():
            _print_counts(collection, deliveries)
            for delivery in deliveries:
                if delivery.state != "done":
                    _print(delivery)
    else:
        versions = Versions(known.ledger)
        for delivery in (d for ds in found.values() for d in ds):
            _print(delivery)
            for older in versions.of(delivery):
                typer.echo(f"  version   {older['map']}")
    if any(d.state not in ("done", "forgotten") for ds in found.values() for d in ds):
        raise typer.Exit(IncompleteRunError.exit_code)


@app.command()
def retry(name: Name, path: File = DEFAULT, collection: Only = None) -> None:
    """Try an image again at the next pass, with all its attempts; a mapped one is mapped again if its map is gone."""
    for image in _decided(name, path, collection, "released"):
        typer.echo(f"{image} is tried again at the next pass")


@app.command()
def forget(name: Name, path: File = DEFAULT, collection: Only = None) -> None:
    """Leave an image out, and tell it no more, until its content changes or `retry`. Its map stays if there is one."""
    for image in _decided(name, path, collection, "forgotten"):
        typer.echo(f"{image} is left out until its content changes")


def _decided(name: str, path: File, collection: str | None, status: str) -> list[str]:
    from ovrs.collection.standing import Collections

    known = Collections(path)
    chosen = known.chosen(name, collection)
    for found in chosen:
        known.ledger.decide(found.entry, status)
    return [f"{found.delivery.image.collection}/{found.delivery.image.name}" for found in chosen]


def _print_counts(collection: str, deliveries: list[Delivery]) -> None:
    counts = sorted(Counter(d.state for d in deliveries).items())
    typer.echo(f"{collection}: {', '.join(f'{count} {state}' for state, count in counts) or 'no images'}")


def _print(delivery: Delivery) -> None:
    why = delivery.reason or (f"same bytes as {delivery.same_as}" if delivery.same_as else "")
    typer.echo("  ".join(part for part in (f"  {delivery.state:9}", delivery.image.name, delivery.map, why) if part))
