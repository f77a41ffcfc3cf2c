"""How the images of collections stand, for those who ask by name and decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ovrs.collection import catalog as catalogs
from ovrs.collection.deliveries import look
from ovrs.collection.ledger import Ledger
from ovrs.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

    from ovrs.collection.deliveries import Delivery


class Tried(NamedTuple):
    """An image that a pass has taken up."""

    delivery: Delivery
    entry: Any
    """Of the ledger."""


class Collections:
    """The collections of a catalog with their ledger. Opens no image."""

    def __init__(self, path: Path) -> None:
        self.catalog = catalogs.load(path)
        self.ledger = Ledger(self.catalog.resolve(self.catalog.outputs.root))

    def deliveries(self, collection: str) -> list[Delivery]:
        """Return the images of a collection as they stand."""
        return look(self.catalog, collection, self.ledger, read=False)

    def of(self, name: str | None) -> dict[str, list[Delivery]]:
        """Deliveries by collection: of all, of one, or of the image called so.

        Raises:
            CatalogError: Nothing is called so.
        """
        if name is None or name in self.catalog.collections:
            return {c: self.deliveries(c) for c in ([name] if name else sorted(self.catalog.collections))}
        every = {c: self.deliveries(c) for c in sorted(self.catalog.collections)}
        found = {c: [d for d in ds if name in (d.image.name, f"{c}/{d.image.name}")] for c, ds in every.items()}
        if not any(found.values()):
            raise self._unknown(name)
        return {c: ds for c, ds in found.items() if ds}

    def chosen(self, name: str, collection: str | None = None) -> list[Tried]:
        """Images that a person means: one, or all of a collection that have failed.

        Raises:
            CatalogError: There is none of this name, several collections have it, or no pass has taken it up.
        """
        if collection is not None:
            self.catalog.collection(collection)
        places = [collection] if collection else sorted(self.catalog.collections)
        found = [d for c in places for d in self.deliveries(c)]
        mine = [d for d in found if name in (d.image.name, f"{d.image.collection}/{d.image.name}")]
        if not mine and name in places:
            failed = ("hopeless", "failed")
            mine = [d for d in found if d.image.collection == name and d.state in failed and not d.same_as]
            if not mine:
                raise CatalogError(f"no image of collection {name} has failed")
        if not mine:
            raise self._unknown(name)
        homes = sorted({d.image.collection for d in mine})
        if len(homes) > 1:
            raise CatalogError(f"{name} is in {', '.join(homes)}; say which: --collection {homes[0]}")
        tried = [Tried(d, self.ledger.entry(d.image)) for d in mine]
        for delivery, entry in tried:
            if entry is None:
                told = f"it waits: {delivery.reason}" if delivery.state == "waiting" else "the next pass takes it up"
                raise CatalogError(f"{name} has not been tried yet; {told}")
        return tried

    def _unknown(self, name: str) -> CatalogError:
        return CatalogError(
            f"no collection holds an image {name!r}, and none is called so; collections: "
            f"{', '.join(sorted(self.catalog.collections)) or 'none'}; `ovrs collection status` lists what is not mapped"
        )


class Versions:
    """Maps of earlier contents of images."""

    def __init__(self, ledger: Ledger) -> None:
        self._mapped: dict[tuple[str, str], list[Any]] = {}
        for entry in sorted(ledger.entries(), key=lambda e: -float(e.get("time", 0))):  # the newest first
            if entry.get("map"):
                self._mapped.setdefault((entry["collection"], entry["name"]), []).append(entry)

    def of(self, delivery: Delivery) -> list[dict[str, str]]:
        """`content` and `map` of each."""
        image = delivery.image
        entries = self._mapped.get((image.collection, image.name), [])
        return [{"content": e["content"], "map": e["map"]} for e in entries if e["key"] != image.key]

    def facts(self, delivery: Delivery) -> dict[str, object]:
        """Return a delivery as JSON."""
        image = delivery.image
        return {
            "collection": image.collection,
            "name": image.name,
            "state": delivery.state,
            "content": image.content,
            "map": delivery.map,
            "same_as": delivery.same_as,
            "reason": delivery.reason,
            "versions": self.of(delivery),
        }
