"""Polygons from a vector file: which layer, and what is wrong with it in one line."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_BATCH = 20_000
"""Features read at a time."""


@dataclass(frozen=True)
class Layer:
    """One layer of a vector file with a CRS. `option` is how messages call it."""

    file: str
    name: str
    crs: Any
    """The layer's `pyproj.CRS`."""
    option: str
    note: str
    """That the file holds other layers, or nothing."""
    columns: list[str] | None
    """Attributes to read: none; None (all) for virtual layers, whose geometry may come from an attribute."""

    @property
    def told(self) -> str:
        """Option, file and layer, for messages."""
        return f"{self.option} {self.file} (layer {self.name})"

    def geometries(self) -> Iterator[NDArray[Any]]:
        """Arrays of shapely geometries in 2D, `_BATCH` at most; None stands for a feature without geometry.

        Raises:
            OptionError: A geometry cannot be read, or holds coordinates that are not finite.
        """
        import shapely

        first = 0
        while True:
            found = self._batch(first)
            if found.size:
                finite = np.isfinite(shapely.get_coordinates(found)).all()
                if not finite:
                    bad = [i for i, g in enumerate(found) if not np.isfinite(shapely.get_coordinates(g)).all()]
                    raise OptionError(
                        f"{self.told}: geometry {first + bad[0] + 1} has coordinates that are infinite or no numbers; mend the file"
                    )
                yield found
            first += len(found)
            if len(found) < _BATCH:
                return

    def _batch(self, first: int) -> NDArray[Any]:
        import pyogrio
        import shapely

        try:
            with warnings.catch_warnings(action="ignore"):  # measures, encodings: of no concern here
                _, _, wkb, _ = pyogrio.raw.read(
                    self.file, layer=self.name, columns=self.columns, skip_features=first, max_features=_BATCH
                )
            with np.errstate(invalid="ignore"):  # coordinates that are no numbers are told of by the caller
                shapes = shapely.from_wkb(wkb)
        except (OSError, ValueError, RuntimeError, shapely.errors.ShapelyError) as error:
            raise OptionError(f"{self.told} cannot be read: {_reason(error)}") from error
        with np.errstate(invalid="ignore"):
            return np.asarray(shapely.force_2d(shapes))


def open_layer(source: str | Path, option: str) -> Layer:
    """Choose a layer of a vector file: the one named by `FILE|layer=NAME`, else the first that can hold polygons.

    Raises:
        OptionError: No such file or layer, no vector file, no geometry, or no CRS.
    """
    import pyogrio
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    file, wanted = _parts(str(source), option)
    _require_file(file, option)
    if file.lower().endswith((".parquet", ".geoparquet")):
        raise OptionError(f"{option} {file}: GeoParquet is not read here; write the polygons as .gpkg or .geojson")
    try:
        with warnings.catch_warnings(action="ignore"):  # measures, encodings: of no concern here
            layers = {str(name): kind for name, kind in pyogrio.list_layers(file)}
            name, note = _choose(layers, wanted, f"{option} {file}")
            info = pyogrio.read_info(file, layer=name)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{option} {file} cannot be read as a vector file: {_reason(error)}") from error
    if info["crs"] is None:
        raise OptionError(f"{option} {file} has no CRS; set one so that it can be placed on the scene")
    columns: list[str] | None = None if info["driver"] == "OGR_VRT" else []
    try:
        return Layer(file, name, CRS.from_user_input(info["crs"]), option, note, columns)
    except CRSError as error:
        raise OptionError(f"{option} {file}: its CRS cannot be understood: {_reason(error)}") from error


def _parts(source: str, option: str) -> tuple[str, str | None]:
    """File and layer of `FILE|layer=NAME` (QGIS writes `layername=`)."""
    file, bar, told = source.partition("|")
    if not bar or os.path.lexists(source):
        return source, None
    key, equals, layer = told.partition("=")
    if key not in ("layer", "layername") or not equals or not layer:
        raise OptionError(f"{option} {source}: a layer is named as FILE|layer=NAME")
    return file, layer


def _require_file(file: str, option: str) -> None:
    if file.startswith("/vsi"):
        return
    try:
        mode = Path(file).stat().st_mode
    except FileNotFoundError as error:
        raise OptionError(f"{option} {file} does not exist") from error
    except (OSError, ValueError) as error:
        raise OptionError(f"{option} {file!r} cannot be read: {_reason(error)}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OptionError(f"{option} {file} is no ordinary file")


def _choose(layers: dict[str, str | None], wanted: str | None, told: str) -> tuple[str, str]:
    """The layer to take, and what to say about it."""
    listed = ", ".join(layers) or "none"
    if wanted is not None:
        if wanted not in layers:
            raise OptionError(f"{told} has no layer {wanted!r}; it has: {listed}")
        return wanted, ""
    placed = [name for name, kind in layers.items() if kind is not None]
    if not placed:
        raise OptionError(f"{told} holds no polygon: it is a table without geometry (layers: {listed})")
    flat = [n for n in placed if any(w in str(layers[n]) for w in ("Polygon", "Surface", "Unknown", "Collection"))]
    chosen = (flat or placed)[0]
    if len(flat or placed) == 1:
        return chosen, ""
    note = f"{told}: layer {chosen!r} is taken of {listed}; FILE|layer=NAME takes another"
    log.warning(note)
    return chosen, note


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].partition("; It might help")[0] if str(error) else type(error).__name__
