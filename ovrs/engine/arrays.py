"""Arrays of any library, by the Python array API: scores stay in the library and on the device that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = Any
"""An array that follows the Python array API and can be written to: NumPy's, torch's."""

__all__ = ["Array", "as_numpy", "beside", "copied", "empty", "namespace", "on_host"]


def namespace(array: Array) -> Any:
    """Return the array API functions for an array. NumPy speaks the API itself and needs no translation."""
    return np if is_numpy_array(array) else array_namespace(array)


def on_host(array: Array) -> bool:
    """Whether an array lies in the memory of the processor, where NumPy can read it in place."""
    return is_numpy_array(array) or str(device(array)).startswith("cpu")


def as_numpy(array: Array) -> NDArray[Any]:
    """Return the numbers in NumPy: in place on the host, else copied to it."""
    return array if is_numpy_array(array) else np.from_dlpack(to_device(array, "cpu"))


def beside(values: NDArray[Any], array: Array) -> Array:
    """NumPy's `values` in the library and on the device of `array`."""
    return values if is_numpy_array(array) else namespace(array).asarray(values, device=device(array))


def copied(array: Array) -> Array:
    """Copy a slice, so that the larger array behind it can be forgotten."""
    return namespace(array).asarray(array, copy=True)


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of another shape in the library, dtype and device of `like`."""
    return namespace(like).zeros(shape, dtype=like.dtype, device=device(like))
