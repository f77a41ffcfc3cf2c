"""A map as an xarray dataset: the same for every Zarr format and every place, lazily read through `Layer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from ovrs.errors import StoreError

if TYPE_CHECKING:
    from ovrs.store.layout import Layer
    from ovrs.store.map import Map

_ABSENT = ("_ARRAY_DIMENSIONS", "_CRS")
"""Attributes for other readers: dimensions of Zarr format 2, GDAL's CRS."""


class _Lazy(BackendArray):
    """A layer that xarray reads when values are asked for."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.shape, self.dtype = layer, layer.shape, layer.dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        return np.asarray(self.layer[key])


def dataset_of(mapped: Map, factor: int) -> xarray.Dataset:
    """See `Map.to_xarray`."""
    if factor not in mapped.factors:
        raise StoreError(f"{mapped.place} has no level {factor}; it has {', '.join(map(str, mapped.factors))}")
    layers: dict[str, tuple[tuple[str, ...], Layer]] = {
        name: (("y", "x"), mapped.layer(name, factor)) for name in ("label", "confidence")
    }
    if factor == 1 and mapped.scores is not None:
        layers["score"] = (("class", "y", "x"), mapped.scores)
    variables = {name: _lazy(dims, layer) for name, (dims, layer) in layers.items()}
    for name in variables.keys() - {"label"}:  # half the memory of what xarray would choose
        told = variables[name].attrs
        told |= {key: np.float32(told[key]) for key in ("scale_factor", "add_offset")}
    flags = variables["label"].attrs
    flags["flag_values"] = np.array(flags["flag_values"], variables["label"].dtype)  # CF: of the variable's own type
    for name in ("y", "x", "spatial_ref"):
        layer = mapped.layer(name, factor)
        dims = () if name == "spatial_ref" else (name,)
        variables[name] = xarray.Variable(dims, np.asarray(layer[...]), _attributes(layer))
    if "score" in variables:
        variables["class"] = xarray.Variable(("class",), list(mapped.names))
    found = xarray.Dataset(variables, attrs={"Conventions": "CF-1.11", "source": f"ovrs {mapped.record.version}"})
    return xarray.decode_cf(found, decode_coords="all")


def _lazy(dims: tuple[str, ...], layer: Layer) -> xarray.Variable:
    return xarray.Variable(dims, indexing.LazilyIndexedArray(_Lazy(layer)), _attributes(layer))


def _attributes(layer: Layer) -> dict[str, object]:
    return {k: v for k, v in layer.attrs.asdict().items() if k not in _ABSENT}
