"""Places that fsspec knows, by URL, and what reading there can raise."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from ovrs.errors import OptionError, StoreError, told

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, EOFError, zlib.error)
"""What zarr and its codecs raise for damaged files."""

_CLIENTS = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "azure")
"""Libraries behind fsspec whose errors are no `OSError`."""


def is_fault_of_reading(error: BaseException) -> bool:
    """Whether an error comes from damaged files or from a place that does not answer."""
    return isinstance(error, UNREADABLE) or type(error).__module__.partition(".")[0] in _CLIENTS


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL and the path there; forgets listings of earlier calls.

    Raises:
        StoreError: The place cannot be reached.
        OptionError: No package is installed for this kind of URL.
    """
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except OSError as error:
        raise StoreError(f"{url} cannot be reached: {told(error)}") from error
    except (ImportError, ValueError) as error:
        raise OptionError(
            f'{url}: {error}. For s3:// install "ovrs[s3]", for others the fsspec package it names'
        ) from error
    files.invalidate_cache()
    return files, root.rstrip("/")
