"""When a scene was recorded: what its file says of it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger(__name__)

_TIFF_FORM = "%Y:%m:%d %H:%M:%S"


def acquired(source: Any) -> str | None:
    """Time in ISO 8601, UTC, of an open raster: of the sensor's side file, else of the TIFF tag DateTime.

    A time without a zone counts as UTC. None: the file says nothing that can be read.
    """
    for text in (
        source.tags(ns="IMAGERY").get("ACQUISITIONDATETIME"),
        source.tags().get("ACQUISITIONDATETIME"),
        source.tags().get("TIFFTAG_DATETIME"),
    ):
        if text and (found := _read(text.strip())) is not None:
            return in_utc(found)
    return None


def in_utc(when: datetime) -> str:
    """ISO 8601 with a zone; without one, `when` counts as UTC."""
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")


def _read(text: str) -> datetime | None:
    for reading in (datetime.fromisoformat, lambda t: datetime.strptime(t, _TIFF_FORM)):
        try:
            found = reading(text)
        except ValueError:
            continue
        return found if found.year > 1840 else None  # zeros stand for nothing
    log.debug("a time of recording cannot be read: %r", text)
    return None
