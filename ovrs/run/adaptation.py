"""One adaptation for a whole scene: from a seeded sample of its tiles, kept beside the run, applied everywhere.

What is learned is written to the run directory before the first block, so every worker and every resumed run uses the
same; blocks then need no agreement at their borders, because nothing differs between them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import zlib
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from ovrs.errors import StoreError, told
from ovrs.objects.address import objects_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.engine.contract import Learned, TileSample
    from ovrs.engine.tiling import Plan
    from ovrs.objects.address import Place
    from ovrs.objects.interface import Objects
    from ovrs.scene.raster import SceneSource

log = logging.getLogger(__name__)

STATE_FILE = "adaptation.npz"
_SEED = 0


def _bytes(file: Place) -> bytes | None:
    """Content of a file beside the markers; None when there is none.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        found = objects_at(file.parent).get(file.name)
    except OSError as error:
        raise StoreError(
            f"{file} cannot be read: {told(error)}; put back a copy of it, or begin anew with --overwrite"
        ) from error
    return None if found is None else found.content


def sample_tiles(scene: SceneSource, plan: Plan, count: int) -> Iterator[TileSample]:
    """Up to `count` tiles with valid pixels, spread over the scene at random but always the same for a plan."""
    found = 0
    for row, col in spread(*plan.tile_shape, count):
        if found == count:
            return
        tile = plan.tile(row, col)
        pixels = scene.read(tile.window)
        if pixels.valid.any():
            found += 1
            crops = tuple(c.relative_to(tile.window) for c in tile.crops)
            yield np.ascontiguousarray(pixels.rgb), np.ascontiguousarray(pixels.valid), crops


def spread(rows: int, cols: int, count: int) -> list[tuple[int, int]]:
    """All tiles of a grid, in an order whose first `count` are spread evenly: one at random from each cell of a coarse grid.

    The rest follow at random, to stand in for tiles without valid pixels.
    """
    random = np.random.default_rng(_SEED)
    order = [divmod(int(index), cols) for index in random.permutation(rows * cols)]
    down = min(rows, max(1, round((count * rows / cols) ** 0.5)))
    across = min(cols, max(1, count // down))
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    for row, col in order:
        cells.setdefault((row * down // rows, col * across // cols), (row, col))
    first = set(cells.values())
    return [*cells.values(), *(tile for tile in order if tile not in first)]


def nothing() -> Learned:
    """Return the state of a run that learns nothing from its scene as a whole."""
    return {"tiles": np.asarray(0), "events": np.asarray([], str)}


def keep(state: Learned, place: Objects) -> None:
    """Write what was learned from a scene to its run directory."""
    log.info("scene-level adaptation learned from a sample: %s", ", ".join(state["events"].tolist()))
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **state)
    place.put(STATE_FILE, stream.getvalue())


def read(file: Place) -> Learned:
    """Return what was learned, by name.

    Raises:
        StoreError: The file is gone or damaged, so the finished blocks cannot be continued alike.
    """
    content = _bytes(file)
    if content is None:
        raise StoreError(f"{file} is missing: what this run learned from its scene; begin anew with --overwrite")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as state:
            return {name: state[name] for name in state.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, BadZipFile, zlib.error) as error:
        raise StoreError(
            f"{file} is damaged ({type(error).__name__}: {error}): what this run learned from its scene; "
            "put back a copy of it, or begin anew with --overwrite"
        ) from error


def digest_of(file: Place) -> str:
    """SHA-256 of what was learned, for provenance and for workers that keep a segmenter.

    Raises:
        StoreError: As `read`.
    """
    digest = hashlib.sha256()
    for name, values in sorted(read(file).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def facts_of(file: Place) -> dict[str, object]:
    """Return what a map's provenance says of the adaptation to its scene.

    Raises:
        StoreError: As `read`.
    """
    state = read(file)
    if not {"tiles", "events"} <= state.keys():
        raise StoreError(f"{file} is damaged (no tiles or events); begin anew with --overwrite")
    facts = {"learned": digest_of(file), "tiles": int(state["tiles"]), "events": state["events"].tolist()}
    numbers = ("bias", "weight", "entropy", "crops", "support")
    facts |= {name: np.round(state[name], 4).tolist() for name in numbers if name in state}
    if "taught_event" in state:
        strength = float(state.get("taught_strength", np.inf))
        facts["taught"] = {
            "event": str(state["taught_event"][0]),
            "places": int(state["taught_places"]),
            "strength": None if np.isinf(strength) else strength,
            "judged": np.round(state.get("taught_judged", np.zeros(0)), 4).tolist(),
        }
    return facts
