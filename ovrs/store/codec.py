"""zarr's gzip codec, several times faster: the same name and format, compressed by ISA-L; and CRC-32 of pixels by it.

Every gzip reader opens what it writes. The header holds no time of day, so equal chunks are equal files. Choosing it
is the libraries' own mechanism: zarr's configuration names the class for format 3, numcodecs' registry for format 2.
`install` makes the choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import zarr
from isal import igzip, isal_zlib
from numcodecs.compat import ensure_contiguous_ndarray
from zarr.codecs import GzipCodec
from zarr.core.buffer.cpu import as_numpy_array_wrapper
from zarr.registry import register_codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer

_decompress: Callable[[Any], bytes] = igzip.decompress
_DAMAGED: Any = isal_zlib.error
HIGHEST_LEVEL = 3
"""ISA-L's; zarr's levels go to 9."""


class FastGzip(GzipCodec):
    """gzip by ISA-L: at level 1 five times faster than zlib and about as small (`benchmarks/engine.py` has the effect)."""

    def _encode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return as_numpy_array_wrapper(self._packed, chunk_bytes, chunk_spec.prototype)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return as_numpy_array_wrapper(_unpacked, chunk_bytes, chunk_spec.prototype)

    def _packed(self, data: Any) -> bytes:
        packed: bytes = igzip.compress(data, min(self.level, HIGHEST_LEVEL), mtime=0)
        return packed


def _unpacked(data: Any) -> bytes:
    try:
        content: bytes = _decompress(data)
    except _DAMAGED as error:  # no subclass of what readers expect of damaged data
        raise ValueError(f"damaged gzip data: {error}") from error
    return content


class TimelessGzip(numcodecs.GZip):  # type: ignore[misc]
    """The same for format 2, whose chunks are packed by numcodecs."""

    codec_id = "gzip"

    def encode(self, buf: Any) -> bytes:
        """Pack any array or buffer with gzip; the same bytes give the same result."""
        packed: bytes = igzip.compress(ensure_contiguous_ndarray(buf), min(self.level, HIGHEST_LEVEL), mtime=0)
        return packed


def pixel_crc(arrays: Iterable[NDArray[Any]], crc: int = 0) -> int:
    """CRC-32 of the bytes of arrays in C order, one after the other, going on from `crc`; by ISA-L four times faster than zlib's."""
    for values in arrays:
        crc = isal_zlib.crc32(np.ascontiguousarray(values).data, crc)
    return crc


def install() -> None:
    """Let zarr use them for every gzipped chunk of this process."""
    numcodecs.register_codec(TimelessGzip)
    register_codec("gzip", FastGzip)
    zarr.config.set({"codecs.gzip": f"{FastGzip.__module__}.{FastGzip.__qualname__}"})
