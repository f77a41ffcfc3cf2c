"""Files that polygons are streamed into: GeoPackage through pyogrio, GeoParquet 1.1 through pyarrow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ovrs.export.geopackage import MARK
from ovrs.export.marks import PARQUET_KEY
from ovrs.export.product import POLYGONS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovrs.export.pieces import Piece

BATCH = 20_000
LAYER = "classes"
"""Default name of a GeoPackage's layer."""


class Sink(Protocol):
    """Takes polygons one by one."""

    def add(self, piece: Piece) -> None:
        """Write one polygon."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def open_sink(
    path: Path, names: Sequence[str], colours: Sequence[tuple[int, int, int]], crs: Any, layer: str = LAYER
) -> Sink:
    """Open the sink for a path: `.gpkg` (where other layers stay), `.parquet` or `.geoparquet`."""
    if path.suffix == ".gpkg":
        return _GeoPackage(path, names, colours, crs, layer)
    return _GeoParquet(path, names, colours, crs)


class _Batched:
    def __init__(self, path: Path, names: Sequence[str], colours: Sequence[tuple[int, int, int]], crs: Any) -> None:
        self.path, self.names, self.crs = path, names, crs
        self.colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours]
        self.waiting: list[Piece] = []

    def add(self, piece: Piece) -> None:
        self.waiting.append(piece)
        if len(self.waiting) >= BATCH:
            self.flush()

    def columns(self) -> dict[str, object]:
        """Attributes of what is waiting."""
        labels = [p.label for p in self.waiting]
        return {
            "class_id": np.array(labels, np.int32),
            "class": [self.names[v] for v in labels],
            "colour": [self.colours[v] for v in labels],
            "area_m2": np.array([round(p.area_m2, 3) for p in self.waiting], np.float64),
            "confidence": np.array([round(p.confidence / max(p.pixels, 1), 4) for p in self.waiting], np.float64),
            "pixels": np.array([p.pixels for p in self.waiting], np.int64),
        }

    def flush(self) -> None:
        raise NotImplementedError


class _GeoPackage(_Batched):
    begun = False

    def __init__(
        self, path: Path, names: Sequence[str], colours: Sequence[tuple[int, int, int]], crs: Any, layer: str
    ) -> None:
        super().__init__(path, names, colours, crs)
        self.layer = layer

    def flush(self) -> None:
        import geopandas

        crs = None if self.crs is None else self.crs.to_wkt()
        frame = geopandas.GeoDataFrame(self.columns(), geometry=[p.geometries[0] for p in self.waiting], crs=crs)
        frame.to_file(
            self.path,
            layer=self.layer,
            driver="GPKG",
            engine="pyogrio",
            append=self.begun,
            geometry_type="Polygon",
            layer_options={} if self.begun else {"DESCRIPTION": MARK},
        )
        self.begun, self.waiting = True, []

    def close(self) -> None:
        if self.waiting or not self.begun:
            self.flush()


class _GeoParquet(_Batched):
    writer: Any = None

    def flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq
        import shapely

        shapes = np.array([p.geometries[0] for p in self.waiting], object)
        bounds = shapely.bounds(shapes).reshape(-1, 4)
        box = pa.StructArray.from_arrays([pa.array(bounds[:, i]) for i in range(4)], ["xmin", "ymin", "xmax", "ymax"])
        table = pa.table({**self.columns(), "bbox": box, "geometry": pa.array(shapely.to_wkb(shapes), pa.binary())})
        if self.writer is None:
            told = {b"geo": self._metadata(), PARQUET_KEY: POLYGONS.name.encode()}
            self.writer = pq.ParquetWriter(self.path, table.schema.with_metadata(told), compression="zstd")
        self.writer.write_table(table)
        self.waiting = []

    def _metadata(self) -> bytes:
        column: dict[str, object] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "covering": {"bbox": {k: ["bbox", k] for k in ("xmin", "ymin", "xmax", "ymax")}},
        }
        column["crs"] = None if self.crs is None else self.crs.proj.to_json_dict()
        return json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}).encode()

    def close(self) -> None:
        if self.waiting or self.writer is None:
            self.flush()
        self.writer.close()
