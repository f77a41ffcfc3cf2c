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

from ovrs.errors import OptionError, OvrsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_BATCH = 20_000
"""Features read at a time."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a vector file. `option` is how messages call it."""

    file: str
    name: str
    crs: Any
    """The layer's `pyproj.CRS`, or None."""
    option: str
    note: str
    """That the file holds other layers, or nothing."""
    error: type[OvrsError]
    """Class of what is raised."""
    columns: list[str] | None
    """Attributes to read: none; None (all) for virtual layers, whose geometry may come from an attribute."""

    @property
    def told(self) -> str:
        """Option, file and layer, for messages."""
        return f"{self.option} {self.file} (layer {self.name})"

    def geometries(self) -> Iterator[NDArray[Any]]:
        """Arrays of shapely geometries in 2D, `_BATCH` at most; None stands for a feature without geometry.

        Raises:
            OvrsError: Of the class `error`. A geometry cannot be read, or holds coordinates that are not finite.
        """
        import shapely

        first = 0
        while True:
            found = self._batch(first)
            if found.size:
                finite = np.isfinite(shapely.get_coordinates(found)).all()
                if not finite:
                    bad = [i for i, g in enumerate(found) if not np.isfinite(shapely.get_coordinates(g)).all()]
                    raise self.error(
                        f"{self.told}: geometry {first + bad[0] + 1} has coordinates that are infinite or no numbers; mend the file"
                    )
                yield found
            first += len(found)
            if len(found) < _BATCH:
                return

    def attributes(self) -> dict[str, list[Any]]:
        """Return the columns of all features.

        Raises:
            OvrsError: Of the class `error`. They cannot be read.
        """
        import pyogrio

        try:
            with warnings.catch_warnings(action="ignore"):
                told, _, _, fields = pyogrio.raw.read(self.file, layer=self.name, read_geometry=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise self.error(f"{self.told} cannot be read: {_reason(error)}") from error
        return {str(name): list(values) for name, values in zip(told["fields"], fields, strict=True)}

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
            raise self.error(f"{self.told} cannot be read: {_reason(error)}") from error
        with np.errstate(invalid="ignore"):
            return np.asarray(shapely.force_2d(shapes))


def open_layer(source: str | Path, option: str, error: type[OvrsError] = OptionError, *, placed: bool = True) -> Layer:
    """Choose a layer of a vector file: the one named by `FILE|layer=NAME`, else the first that can hold polygons.

    Args:
        source: File, or file and layer.
        option: How messages call it.
        error: Class of what is raised.
        placed: The layer must have a CRS.

    Raises:
        OvrsError: No such file or layer, no vector file, no geometry, or no CRS.
    """
    import pyogrio
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        file, wanted = _parts(str(source))
        _require_file(file)
        with warnings.catch_warnings(action="ignore"):  # measures, encodings: of no concern here
            layers = {str(name): kind for name, kind in pyogrio.list_layers(file)}
            name, note = _choose(layers, wanted, f"{option} {file}")
            info = pyogrio.read_info(file, layer=name)
        if info["crs"] is None and placed:
            raise _Unusable("has no CRS; set one so that it can be placed on the scene")
        crs = None if info["crs"] is None else CRS.from_user_input(info["crs"])
    except _Unusable as fault:
        raise error(f"{option} {source!s} {fault}") from fault
    except CRSError as fault:
        raise error(f"{option} {source!s}: its CRS cannot be understood: {_reason(fault)}") from fault
    except (OSError, ValueError, RuntimeError) as fault:
        raise error(f"{option} {source!s} cannot be read as vectors: {_reason(fault)}") from fault
    columns: list[str] | None = None if info["driver"] == "OGR_VRT" else []
    return Layer(file=file, name=name, crs=crs, option=option, note=note, error=error, columns=columns)


class _Unusable(Exception):  # noqa: N818  (a reason, said by whoever catches it)
    """Why a file cannot be used, as the rest of a sentence that begins with its name."""


def _parts(source: str) -> tuple[str, str | None]:
    """File and layer of `FILE|layer=NAME` (QGIS writes `layername=`)."""
    file, bar, told = source.partition("|")
    if not bar or os.path.lexists(source):
        return source, None
    key, equals, layer = told.partition("=")
    if key not in ("layer", "layername") or not equals or not layer:
        raise _Unusable("names no layer; write FILE|layer=NAME")
    return file, layer


def _require_file(file: str) -> None:
    if file.startswith("/vsi"):
        return
    try:
        mode = Path(file).stat().st_mode
    except FileNotFoundError as error:
        raise _Unusable("does not exist") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise _Unusable("is no ordinary file")
    if file.lower().endswith((".parquet", ".geoparquet")):
        raise _Unusable("is GeoParquet, which is not read here; write the polygons as .gpkg or .geojson")


def _choose(layers: dict[str, str | None], wanted: str | None, told: str) -> tuple[str, str]:
    """Return the layer to take, and what to say about it."""
    listed = ", ".join(layers) or "none"
    if wanted is not None:
        if wanted not in layers:
            raise _Unusable(f"has no layer {wanted!r}; it has: {listed}")
        return wanted, ""
    placed = [name for name, kind in layers.items() if kind is not None]
    if not placed:
        raise _Unusable(f"holds no polygon: it is a table without geometry (layers: {listed})")
    flat = [n for n in placed if any(w in str(layers[n]) for w in ("Polygon", "Surface", "Unknown", "Collection"))]
    chosen = (flat or placed)[0]
    if len(flat or placed) == 1:
        return chosen, ""
    note = f"{told}: layer {chosen!r} is taken of {listed}; FILE|layer=NAME takes another"
    log.warning(note)
    return chosen, note


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].partition("; It might help")[0] if str(error) else type(error).__name__
