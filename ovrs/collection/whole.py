"""Whether a delivered file is whole: its header and its last block can be read."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from ovrs.errors import SceneReadError, told
from ovrs.scene import vsi

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_HEAD = 4096


def fault(uri: str) -> str:
    """Return what is missing of a raster that is still being delivered; empty for a whole one.

    A file that no driver of GDAL knows by its first bytes is no raster: it is whole, and mapping it tells what it is.
    """
    name = vsi.name_of(uri)
    with vsi.environment(uri), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with vsi.reading(name) as stream:
                head = stream.read(0, _HEAD)
            if not head.strip(b"\0"):
                return "it holds no data so far"
            with rasterio.open(uri) as source:
                return _last_block_fault(source)
        except SceneReadError as error:
            return str(error)
        except (RasterioError, OSError) as error:
            return f"its header cannot be read ({told(error)})" if vsi.is_raster(name) else ""


def _last_block_fault(source: DatasetReader) -> str:
    """Read the last block of each band: files are written from front to back."""
    if not source.count:
        return ""
    height, width = source.block_shapes[0]
    row, column = (source.height - 1) // height * height, (source.width - 1) // width * width
    try:
        source.read(window=Window(column, row, source.width - column, source.height - row))
    except (RasterioError, OSError) as error:
        return f"its last block cannot be read ({told(error)})"
    return ""
