"""One array of a store: how its pixels are read and written."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr

from ovrs.errors import StoreError
from ovrs.store.place import UNREADABLE, is_fault_of_reading


class Layer(zarr.Array[Any]):
    """An array whose damaged chunks are told in one line, and that is written to as quickly as its pixels allow."""

    def __setitem__(self, selection: Any, value: Any) -> None:
        if np.equal(value, self.fill_value).any():
            super().__setitem__(selection, value)
        else:  # spare zarr's slow look at every chunk for "nothing but fill value"
            zarr.Array(self.async_array.with_config({"write_empty_chunks": True}))[selection] = value

    def __getitem__(self, selection: Any) -> Any:
        try:
            return super().__getitem__(selection)
        except Exception as error:
            if not is_fault_of_reading(error):
                raise
            raise StoreError(
                f"{self.store_path} holds a damaged chunk ({type(error).__name__}: {error}); "
                f"`ovrs verify` names it, `ovrs repair` computes it again"
            ) from error


def array(group: zarr.Group, name: str) -> Layer:
    """Return an array of the store by name.

    Raises:
        StoreError: There is none of that name, or its metadata are damaged. Reading raises it for a damaged chunk.
    """
    try:
        member = group.get(name)
    except UNREADABLE as error:
        raise StoreError(f"{group.store_path}/{name}: damaged metadata ({type(error).__name__}: {error})") from error
    if not isinstance(member, zarr.Array):
        raise StoreError(f"store {group.store_path} holds no array {name!r}")
    return Layer(member.async_array)
