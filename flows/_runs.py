"""How runs of flows and tasks are called and marked in Prefect, and how a cancel reaches the blocks under way."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prefect import get_run_logger
from prefect.assets import Asset, AssetProperties
from prefect.client.orchestration import get_client
from prefect.exceptions import ExternalSignal, PrefectException
from prefect.runtime import flow_run

from ovrs.objects.address import place_of
from ovrs.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.store.record import RunRecord

stopping = threading.Event()
"""Set once this process is to end: blocks under way are finished, no other is begun."""


@contextmanager
def ends_blocks() -> Iterator[None]:
    """Inside, a cancel (SIGTERM) or Ctrl-C also ends the work of this process within a block."""
    try:
        yield
    except (ExternalSignal, KeyboardInterrupt):
        stopping.set()
        raise


def scene_name(uri: str) -> str:
    """The last part of a path or address, without what follows `?`."""
    return redacted(str(uri)).split("?")[0].rstrip("/").rsplit("/", 1)[-1]


def scene_run_name() -> str:
    """Name of a run of a flow over one scene: the scene's."""
    return scene_name(str(flow_run.parameters.get("scene", "scene")))


def collection_run_name() -> str:
    """Name of a run of a flow over a collection: the collection's."""
    return str(flow_run.parameters.get("collection", "collection"))


def mark(*words: str) -> None:
    """Add tags to the present flow run; without an answer of the server it stays as it is."""
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, tags=sorted({*flow_run.tags, *words}))
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("tags were not set: %s", error)


def asset(out: str, name: str) -> Asset:
    """The map at `out` as an asset of Prefect."""
    place = place_of(out)
    url = f"file://{place.absolute()}" if isinstance(place, Path) else redacted(out)
    key = re.sub(r"[^A-Za-z0-9_.\-/:+~]", "_", url)[:500]
    return Asset(key=key, properties=AssetProperties(name=name, description=f"Class map of {name}"))


def areas(record: RunRecord) -> dict[str, Any]:
    """What an asset says of its map: hectares and percent by class, the number of holes, and digest."""
    classes = {c.name: {"hectares": c.hectares, "percent": c.percent} for c in record.classes}
    return {"classes": classes, "holes": len(record.holes), "digest": record.digest}
