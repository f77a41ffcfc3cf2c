"""Put the schema of an unfinished store back to what it was at the beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.storage import MemoryStore

from ovrs.errors import OutputError, StoreError
from ovrs.objects.many import each
from ovrs.store.layout import create

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from zarr.core.buffer import Buffer

    from ovrs.objects.interface import Objects
    from ovrs.store.layout import Schema


def refresh(place: Objects, geobox: GeoBox, schema: Schema) -> list[str]:
    """Put back the schema of an unfinished store: metadata and coordinates that differ from what `create` writes.

    Args:
        place: Files of the store.
        geobox: Its grid.
        schema: Its arrays.

    Returns:
        The files that differed, relative to the store.

    Raises:
        StoreError: A folder of the store is a file, or the reverse.
    """
    changed, wanted = [], schema_files(geobox, schema)
    for name, found in each(place, wanted, place.get):
        if found is None or found.content != wanted[name]:
            try:
                place.put(name, wanted[name])
            except OutputError as error:
                if not isinstance(error.__cause__, (FileExistsError, NotADirectoryError, IsADirectoryError)):
                    raise
                raise StoreError(f"something is in the way of the store; move it away: {error}") from error
            changed.append(name)
    return changed


def schema_files(geobox: GeoBox, schema: Schema) -> dict[str, bytes]:
    """Metadata and coordinates as `create` writes them, by their paths in the store."""
    wanted: dict[str, Buffer] = {}
    create(MemoryStore(wanted), geobox, schema)
    return {name: content.to_bytes() for name, content in sorted(wanted.items())}
