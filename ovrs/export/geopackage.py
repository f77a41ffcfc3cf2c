"""Put a layer into a GeoPackage that may hold other people's layers: theirs stay, only a layer of `ovrs` is replaced."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs.errors import OptionError, OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "class polygons by ovrs"
"""Description of a layer in `gpkg_contents`, by which it is known again."""
_OWNER = "ovrs"
_RESERVED = ("gpkg_", "sqlite_", "rtree_", "layer_styles")
_BUSY = ("-wal", "-journal")
"""Files that a program leaves beside a GeoPackage while it writes there."""

_STYLE_TABLE = (
    "CREATE TABLE IF NOT EXISTS layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), "
    "f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), "
    "styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
    "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"
)


def check_layer_name(layer: str) -> None:
    """Refuse names that no GeoPackage layer can have.

    Raises:
        OptionError: Empty, with control characters or quotes, or reserved.
    """
    if not layer.strip() or not layer.isprintable() or '"' in layer or layer.lower().startswith(_RESERVED):
        raise OptionError(f"--layer {layer!r} cannot name a layer of a GeoPackage; choose letters, digits and _")


def check_layer(path: Path, layer: str, *, overwrite: bool = False) -> None:
    """Refuse to touch a GeoPackage where `layer` is somebody else's or that another program is writing.

    Args:
        path: An existing or new `*.gpkg`.
        layer: The layer to write.
        overwrite: Replace a layer of that name whoever made it, or a file that is no GeoPackage.

    Raises:
        OptionError: See above; the message names the way out.
        OutputError: Another program has the file open for writing.
    """
    if not path.exists():
        return
    busy = [path.name + s for s in _BUSY if _size(path.with_name(path.name + s))]
    if busy:
        raise OutputError(
            f"{path} is open in another program ({busy[0]} lies beside it); close it there, or write another file"
        )
    if not is_geopackage(path):
        if not overwrite:
            raise OptionError(
                f"{path} is there already and is no GeoPackage; choose another name, or --overwrite replaces it"
            )
        return
    with closing(_open(path)) as database:
        theirs = _tables_named(database, layer) and not _is_ours(database, layer)
    if theirs and not overwrite:
        raise OptionError(
            f"{path} holds a layer {layer!r} that ovrs did not write; name another with --layer, or --overwrite replaces it"
        )


def is_geopackage(path: Path) -> bool:
    """Whether a file is a SQLite database with the tables of a GeoPackage."""
    try:
        with closing(_open(path)) as database:
            return bool(_tables_named(database, "gpkg_contents"))
    except sqlite3.DatabaseError:
        return False


def copy_into(source: Path, target: Path) -> None:
    """Copy a GeoPackage consistently, whatever other programs read meanwhile.

    Raises:
        OutputError: It cannot be read or copied.
    """
    try:
        with closing(_open(source)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)
    except sqlite3.Error as error:
        raise OutputError(f"{source} cannot be copied: {error}") from error


def add_style(path: Path, layer: str, style: str) -> None:
    """Store a QML style as the default of `layer`; styles that other people saved for it stay, but are no default.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(_STYLE_TABLE)
            column = database.execute(
                "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (layer,)
            ).fetchone()
            database.execute("DELETE FROM layer_styles WHERE f_table_name = ? AND owner = ?", (layer, _OWNER))
            database.execute("UPDATE layer_styles SET useAsDefault = 0 WHERE f_table_name = ?", (layer,))
            database.execute(
                "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
                "styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, 'classes', ?, '', 1, 'ovrs', ?)",
                (layer, column[0], style, _OWNER),
            )
            database.execute(
                "INSERT OR IGNORE INTO gpkg_contents (table_name, data_type, identifier) "
                "VALUES ('layer_styles', 'attributes', 'layer_styles')"
            )
    except sqlite3.Error as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    """Read only; never creates the file."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _tables_named(database: sqlite3.Connection, name: str) -> Sequence[Any]:
    return database.execute("SELECT name FROM sqlite_master WHERE lower(name) = lower(?)", (name,)).fetchall()


def _is_ours(database: sqlite3.Connection, layer: str) -> bool:
    told = database.execute(
        "SELECT description FROM gpkg_contents WHERE lower(table_name) = lower(?) AND data_type = 'features'", (layer,)
    ).fetchall()
    if any(description == MARK for (description,) in told):
        return True
    if not told or not _tables_named(database, "layer_styles"):
        return False
    return bool(
        database.execute(
            "SELECT 1 FROM layer_styles WHERE lower(f_table_name) = lower(?) AND owner = ?", (layer, _OWNER)
        ).fetchone()
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
