"""Layers on disk that live as long as one command."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr

from ovrs.encoding import label_dtype, label_nodata
from ovrs.store import codec
from ovrs.store.layout import Layer
from ovrs.store.pyramid import strips

if TYPE_CHECKING:
    from types import TracebackType

CHUNK = 512


class Scratch:
    """A temporary folder of compressed layers of one shape; it goes with the `with` block. `TMPDIR` says where."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """Take rows and columns of the layers."""
        self.shape = shape
        self._folder = tempfile.TemporaryDirectory(prefix="ovrs-clean-", ignore_cleanup_errors=True)

    def layer(self, name: str, largest: int) -> Layer:
        """Make an empty layer that holds numbers up to `largest`; an older one of the same name is gone."""
        dtype = np.min_scalar_type(max(largest, 255))
        made: zarr.Array[Any] = zarr.create_array(
            str(Path(self._folder.name) / name),
            shape=self.shape,
            chunks=(CHUNK, CHUNK),
            dtype=dtype,
            fill_value=0,
            compressors=codec.FastGzip(level=1),
            overwrite=True,
        )
        return Layer(made.async_array)

    def finished(self, layer: Layer, classes: int, name: str = "finished") -> Layer:
        """Copy a layer in a map's own type: values from `classes` on become the map's no data."""
        dtype, nodata = label_dtype(classes), label_nodata(classes)
        made = self.layer(f"{name}-{uuid.uuid4().hex[:6]}", nodata)
        for window in strips(self.shape, 4 * CHUNK):
            part = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
            values = np.asarray(layer[part])
            made[part] = np.where(values < classes, values, nodata).astype(dtype)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()
