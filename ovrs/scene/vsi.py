"""Bytes, sizes and version tags of whatever GDAL can open: files, members of archives, addresses, buckets.

Local files are read by Python. The rest is asked of the GDAL library that rasterio has loaded, through its C interface:
rasterio has no function for it, and only GDAL knows the proxies, credentials and archives that the pixels come through.
Calls release Python's lock. Names are GDAL's (`/vsicurl/https://…`), sizes and offsets are in bytes.
"""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import rasterio
import rasterio._base
from rasterio._path import _parse_path, _vsi_path
from rasterio.session import Session

from ovrs.errors import SceneReadError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ARCHIVE = re.compile(r"^/vsi(?:zip|tar|7z|rar)/")
_OTHER_WRAPPER = re.compile(r"^/vsi(?:gzip/|subfile/[^,]*,)")
_ARCHIVE_END = re.compile(
    r"^(.*?\.(?:zip|kmz|dwf|ods|xlsx|xlsm|tar|tgz|tar\.gz|7z|lpk|lpkx|mpk|mpkx|rar))(?:/.*)?$", re.I
)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "GDALOpenEx": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_uint, *[ctypes.c_void_p] * 3]),
    "GDALIdentifyDriver": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_void_p]),
    "GDALGetFileList": (ctypes.c_void_p, [ctypes.c_void_p]),
    "GDALClose": (None, [ctypes.c_void_p]),
    "CSLDestroy": (None, [ctypes.c_void_p]),
    "VSIFOpenL": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]),
    "VSIFSeekL": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]),
    "VSIFTellL": (ctypes.c_uint64, [ctypes.c_void_p]),
    "VSIFReadL": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]),
    "VSIFCloseL": (ctypes.c_int, [ctypes.c_void_p]),
    "VSIGetFileMetadata": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]),
    "VSICurlPartialClearCache": (None, [ctypes.c_char_p]),
}
_READ_RASTER = 0x02


class Reading(Protocol):
    """An open file."""

    size: int

    def read(self, start: int, count: int) -> bytes:
        """Read `count` bytes from `start`."""
        ...


def name_of(uri: str) -> str:
    """GDAL's name of what rasterio opens as `uri`: `https://…` is `/vsicurl/https://…`, `file:///x` is `/x`."""
    return str(_vsi_path(_parse_path(uri)))


def is_remote(name: str) -> bool:
    """Whether the bytes of a file come from a server."""
    return re.match(r"^/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)(_streaming)?[/?]", container(name)) is not None


def local_path(name: str) -> Path | None:
    """Return the path of a plain file; None for what only GDAL can read."""
    return None if name.startswith("/vsi") or "://" in name else Path(name)


def container(name: str) -> str:
    """Return the file that lies on a disk or server: for a member of an archive the archive, else the file itself."""
    while True:
        if found := _OTHER_WRAPPER.match(name):
            inner = name[found.end() :]
        elif found := _ARCHIVE.match(name):
            inner = name[found.end() :]
            if inner.startswith("{"):
                inner = inner[1 : inner.rindex("}")] if "}" in inner else inner[1:]
            elif end := _ARCHIVE_END.match(inner):
                inner = end[1]
        else:
            return name
        name = f"/{inner}" if inner.startswith("vsi") else inner


def environment(uri: str) -> rasterio.Env:
    """GDAL's credentials for `uri`, as rasterio takes them when it opens a raster."""
    return rasterio.Env(session=Session.from_path(uri))


def _gdal() -> Any:
    """Return the GDAL library of this process, with the types of its functions.

    Raises:
        SceneReadError: rasterio was built in a way that hides it.
    """
    library = ctypes.CDLL(rasterio._base.__file__)
    try:
        for function, (result, arguments) in _SIGNATURES.items():
            getattr(library, function).restype, getattr(library, function).argtypes = result, arguments
    except AttributeError as error:
        raise SceneReadError(f"this build of rasterio does not give access to GDAL's files ({error})") from error
    return library


def _strings(pointer: int | None) -> list[str]:
    """Return a list of strings of GDAL's, which is freed."""
    if not pointer:
        return []
    array = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_char_p))
    found: list[str] = []
    while (text := array[len(found)]) is not None:
        found.append(text.decode("utf-8", "surrogateescape"))
    _gdal().CSLDestroy(pointer)
    return found


def listed(name: str) -> list[str]:
    """Return the files that GDAL reads for a raster: itself, side files, sources of a VRT; none if it cannot be opened.

    On a server, side files are looked for only if the raster does not open without them: a server that answers every name
    would be asked for overviews of overviews without end.
    """
    for side_files in ("EMPTY_DIR", "TRUE") if is_remote(name) else ("FALSE",):
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=side_files):
            if found := _listed(name):
                return found
    return []


def _listed(name: str) -> list[str]:
    gdal = _gdal()
    dataset = gdal.GDALOpenEx(_bytes(name), _READ_RASTER, None, None, None)
    if not dataset:
        return []
    try:
        return _strings(gdal.GDALGetFileList(dataset))
    finally:
        gdal.GDALClose(dataset)


def is_raster(name: str) -> bool:
    """Whether some driver takes a file for its own by name and first bytes, whole or not."""
    with rasterio.Env():
        return bool(_gdal().GDALIdentifyDriver(_bytes(name), None))


def headers(name: str) -> dict[str, str]:
    """Return what the server says now of a remote file, by lower-case names; empty if it does not answer."""
    found = (line.partition("=") for line in _strings(_gdal().VSIGetFileMetadata(_bytes(name), b"HEADERS", None)))
    return {key.lower(): value for key, _, value in found}


def forget(name: str) -> None:
    """Let GDAL ask the server anew for a remote file; other threads go on with the files they have open."""
    if is_remote(name):
        _gdal().VSICurlPartialClearCache(_bytes(container(name)))


@contextmanager
def reading(name: str) -> Iterator[Reading]:
    """Open a file for reading by ranges.

    Raises:
        SceneReadError: There is no such file, or no way to it.
    """
    path = local_path(name)
    try:
        stream: _Local | _Virtual = _Virtual(name) if path is None else _Local(path)
    except OSError as error:
        raise SceneReadError(f"{name} cannot be read: {error.strerror or error}") from error
    try:
        yield stream
    finally:
        stream.close()


class _Local:
    def __init__(self, path: Path) -> None:
        self._stream = path.open("rb")
        self.size = os.fstat(self._stream.fileno()).st_size

    def read(self, start: int, count: int) -> bytes:
        self._stream.seek(start)
        return self._stream.read(count)

    def close(self) -> None:
        self._stream.close()


class _Virtual:
    def __init__(self, name: str) -> None:
        self._name, self._file = name, _gdal().VSIFOpenL(_bytes(name), b"rb")
        if not self._file:
            raise FileNotFoundError(None, "it is gone, or the server does not answer")
        _gdal().VSIFSeekL(self._file, 0, os.SEEK_END)
        self.size = int(_gdal().VSIFTellL(self._file))

    def read(self, start: int, count: int) -> bytes:
        buffer = ctypes.create_string_buffer(count)
        _gdal().VSIFSeekL(self._file, start, os.SEEK_SET)
        found = _gdal().VSIFReadL(buffer, 1, count, self._file)
        return buffer.raw[:found]

    def close(self) -> None:
        _gdal().VSIFCloseL(self._file)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
