"""Commands about the images of collections: how they stand, and what a person decides about those that fail."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovrs.cli.catalog import DEFAULT, File
from ovrs.cli.edge import App
from ovrs.errors import CatalogError, IncompleteRunError

if TYPE_CHECKING:
    from ovrs.collection.catalog import Catalog
    from ovrs.collection.deliveries import Delivery
    from ovrs.collection.ledger import Ledger

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
    known, ledger = _opened(path)
    whole = name is None or name in known.collections
    places = [name] if name is not None and whole else sorted(known.collections)
    found = {c: _deliveries(known, ledger, c) for c in places}
    if not whole:
        found = {c: [d for d in ds if name in (d.image.name, f"{c}/{d.image.name}")] for c, ds in found.items()}
        found = {c: ds for c, ds in found.items() if ds}
        if not found:
            raise _unknown(known, str(name))
    if as_json or not whole:
        mapped = _mapped(ledger)
    if as_json:
        typer.echo(json.dumps([_facts(d, mapped) for ds in found.values() for d in ds], indent=1))
    for collection, deliveries in found.items() if not as_json else ():
        if whole:
            _print_counts(collection, deliveries)
        for delivery in deliveries:
            if not whole or delivery.state != "done":
                _print(delivery)
            for older in [] if whole else _versions(delivery, mapped):
                typer.echo(f"  version   {older['map']}")
    if any(d.state not in ("done", "forgotten") for ds in found.values() for d in ds):
        raise typer.Exit(IncompleteRunError.exit_code)


@app.command()
def retry(name: Name, path: File = DEFAULT, collection: Only = None) -> None:
    """Try an image again at the next pass, with all its attempts; a mapped one is mapped again if its map is gone."""
    for found, entry, ledger in _chosen(name, path, collection):
        ledger.decide(entry, "released")
        typer.echo(f"{found.image.collection}/{found.image.name} is tried again at the next pass")


@app.command()
def forget(name: Name, path: File = DEFAULT, collection: Only = None) -> None:
    """Leave an image out, and tell it no more, until its content changes or `retry`. Its map stays if there is one."""
    for found, entry, ledger in _chosen(name, path, collection):
        ledger.decide(entry, "forgotten")
        typer.echo(f"{found.image.collection}/{found.image.name} is left out until its content changes")


def _opened(path: Any) -> tuple[Catalog, Ledger]:
    from ovrs.collection import catalog as catalogs
    from ovrs.collection.ledger import Ledger

    known = catalogs.load(path)
    return known, Ledger(known.resolve(known.outputs.root))


def _deliveries(known: Catalog, ledger: Ledger, collection: str) -> list[Delivery]:
    from ovrs.collection.deliveries import look

    return look(known, collection, ledger, read=False)


def _chosen(name: str, path: Any, collection: str | None) -> list[tuple[Delivery, dict[str, Any], Ledger]]:
    """Images that a person means, with their entries.

    Raises:
        CatalogError: There is none of this name, several collections have it, or no pass has taken it up.
    """
    known, ledger = _opened(path)
    if collection is not None:
        known.collection(collection)
    places = [collection] if collection else sorted(known.collections)
    found = [d for c in places for d in _deliveries(known, ledger, c)]
    mine = [d for d in found if name in (d.image.name, f"{d.image.collection}/{d.image.name}")]
    if not mine and name in places:
        mine = [d for d in found if d.image.collection == name and d.state in ("hopeless", "failed") and not d.same_as]
        if not mine:
            raise CatalogError(f"no image of collection {name} has failed")
    if not mine:
        raise _unknown(known, name)
    homes = sorted({d.image.collection for d in mine})
    if len(homes) > 1:
        raise CatalogError(f"{name} is in {', '.join(homes)}; say which: --collection {homes[0]}")
    entries = [(d, ledger.entry(d.image), ledger) for d in mine]
    for delivery, entry, _ in entries:
        if entry is None:
            told = f"it waits: {delivery.reason}" if delivery.state == "waiting" else "the next pass takes it up"
            raise CatalogError(f"{name} has not been tried yet; {told}")
    return [(d, e, own) for d, e, own in entries if e is not None]


def _unknown(known: Catalog, name: str) -> CatalogError:
    return CatalogError(
        f"no collection holds an image {name!r}, and none is called so; collections: "
        f"{', '.join(sorted(known.collections)) or 'none'}; `ovrs collection status` lists what is not mapped"
    )


def _print_counts(collection: str, deliveries: list[Delivery]) -> None:
    counts = sorted(Counter(d.state for d in deliveries).items())
    typer.echo(f"{collection}: {', '.join(f'{count} {state}' for state, count in counts) or 'no images'}")


def _print(delivery: Delivery) -> None:
    why = delivery.reason or (f"same bytes as {delivery.same_as}" if delivery.same_as else "")
    typer.echo("  ".join(part for part in (f"  {delivery.state:9}", delivery.image.name, delivery.map, why) if part))


Mapped = dict[tuple[str, str], list[dict[str, Any]]]


def _mapped(ledger: Ledger) -> Mapped:
    """Entries with a map by collection and name, the newest first."""
    found: Mapped = {}
    for entry in sorted(ledger.entries(), key=lambda e: -float(e.get("time", 0))):
        if entry.get("map"):
            found.setdefault((entry["collection"], entry["name"]), []).append(entry)
    return found


def _versions(delivery: Delivery, mapped: Mapped) -> list[dict[str, Any]]:
    image = delivery.image
    return [e for e in mapped.get((image.collection, image.name), []) if e["key"] != image.key]


def _facts(delivery: Delivery, mapped: Mapped) -> dict[str, Any]:
    image = delivery.image
    return {
        "collection": image.collection,
        "name": image.name,
        "state": delivery.state,
        "content": image.content,
        "map": delivery.map,
        "same_as": delivery.same_as,
        "reason": delivery.reason,
        "versions": [{"content": e["content"], "map": e["map"]} for e in _versions(delivery, mapped)],
    }
